"""How much time the SLOs of online requests leave for one iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from echo_sglang.domain.snapshot import Snapshot, WaitingOnline


@dataclass(frozen=True, slots=True, kw_only=True)
class SloSettings:
    """Server-wide SLOs and how cautiously they are used.

    max_gap_factor: no gap between two tokens may exceed this many TPOT SLOs.
    ttft_margin, tpot_margin: share of each SLO that is planned with; the rest absorbs
    what the scheduler does not see (tokenization, HTTP, detokenization). Of the TPOT no more is
    kept back than one largest gap in all, see `next_token_deadline`.
    arrival_share: share of the TTFT SLO that one iteration may take while nobody is online.
    """

    ttft_slo_s: float
    tpot_slo_s: float
    max_gap_factor: float = 3.0
    ttft_margin: float = 0.85
    tpot_margin: float = 0.85
    arrival_share: float = 0.25

    def __post_init__(self) -> None:
        assert self.ttft_slo_s > 0 and self.tpot_slo_s > 0
        assert 0 < self.ttft_margin <= 1 and 0 < self.tpot_margin <= 1


def first_token_deadline(arrival_s: float, ttft_slo_s: float, slo: SloSettings) -> float:
    """When the first token must be computed."""
    return arrival_s + slo.ttft_margin * ttft_slo_s


def next_token_deadline(
    first_token_s: float, output_tokens: int, tpot_slo_s: float, slo: SloSettings
) -> float:
    """When token number `output_tokens` + 1 must be computed, counted from the first.

    A request that ran ahead of its TPOT owns slack, one that is late owes it. What is kept back
    grows by a share of every token until it holds one largest gap: the SLO is on the mean, so
    one gap is all that can come between, however many tokens there are.
    """
    due_s = output_tokens * tpot_slo_s
    kept_s = min((1.0 - slo.tpot_margin) * due_s, slo.max_gap_factor * tpot_slo_s)
    return first_token_s + due_s - kept_s


def decode_budget(snapshot: Snapshot) -> float:
    """Seconds until the next token of some online row is due; inf without online rows.

    Divided among the iterations that a token needs to reach its client.
    """
    online = snapshot.online
    if online.earliest_deadline_s is None:
        return math.inf
    due_s = online.earliest_deadline_s
    if online.earliest_gap_s is not None:
        due_s = min(due_s, online.earliest_gap_s)
    return _share(snapshot, due_s)


def gap_budget(snapshot: Snapshot) -> float:
    """Seconds until a gap between two tokens of some online row gets too long."""
    gap_s = snapshot.online.earliest_gap_s
    return math.inf if gap_s is None else _share(snapshot, gap_s)


def sustainable_step(snapshot: Snapshot, slo: SloSettings) -> float:
    """Longest decode step that need not be shortened by sending offline rows away.

    A row that is late for the moment catches up while steps take less than its TPOT: only
    prefill has to wait for it, as long as no gap between two tokens gets too long.
    """
    budget_s = decode_budget(snapshot)
    tpot_s = snapshot.online.tightest_tpot_s
    if tpot_s is None:
        return budget_s
    steady_s = slo.tpot_margin * tpot_s / snapshot.delivery_steps
    return max(budget_s, min(steady_s, gap_budget(snapshot)))


def arrival_guard(burst_prefill_s: float, slo: SloSettings) -> float:
    """Longest iteration that a burst arriving at its start can still absorb.

    At most a share of the TTFT SLO, since the next burst may be larger than those seen; never
    below one TPOT SLO, since a guard that forbids all offline work protects nobody.
    """
    left_s = slo.ttft_margin * slo.ttft_slo_s - burst_prefill_s
    return max(min(left_s, slo.arrival_share * slo.ttft_slo_s), slo.tpot_slo_s)


def in_deadline_order(
    waiting: tuple[WaitingOnline, ...], now_s: float, prefill_s: dict[str, float]
) -> tuple[WaitingOnline, ...]:
    """Earliest deadline first; those that can no longer make it come after those that can."""

    def key(request: WaitingOnline) -> tuple[bool, float]:
        hopeless = now_s + prefill_s[request.rid] > request.deadline_s
        return hopeless, request.deadline_s

    return tuple(sorted(waiting, key=key))


def _share(snapshot: Snapshot, due_s: float) -> float:
    left_s = due_s - snapshot.now_s - snapshot.in_flight_s
    return left_s / snapshot.delivery_steps
