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
    what the scheduler does not see (HTTP, detokenization).
    most_kept, kept_for_bursts: how many TPOT SLOs of one request are kept back at most: so many,
    and so many more while all prefill is that of online requests, see `next_token_deadline`.
    catch_up_tokens: a row that is late shall be in time again after so many tokens, as far as
    fewer offline rows beside it help.
    arrival_share: share of the TTFT SLO that one iteration may take while nobody is online.
    """

    ttft_slo_s: float
    tpot_slo_s: float
    max_gap_factor: float = 3.0
    ttft_margin: float = 0.85
    tpot_margin: float = 0.85
    most_kept: float = 0.75
    kept_for_bursts: float = 2.0
    catch_up_tokens: float = 16.0
    arrival_share: float = 0.25

    def __post_init__(self) -> None:
        assert self.ttft_slo_s > 0 and self.tpot_slo_s > 0
        assert 0 < self.ttft_margin <= 1 and 0 < self.tpot_margin <= 1
        assert self.most_kept >= 0 and self.kept_for_bursts >= 0 and self.catch_up_tokens > 0


def first_token_deadline(arrival_s: float, ttft_slo_s: float, slo: SloSettings) -> float:
    """When the first token must be computed."""
    return arrival_s + slo.ttft_margin * ttft_slo_s


def next_token_deadline(
    first_token_s: float,
    output_tokens: int,
    tpot_slo_s: float,
    slo: SloSettings,
    online_share: float = 0.0,
) -> float:
    """When token number `output_tokens` + 1 must be computed, counted from the first.

    A request that ran ahead of its TPOT owns slack, one that is late owes it. What is kept back
    grows by a share of every token up to some tokens' time: the SLO is on the mean, so that is what
    may come between, however many tokens there are. It is a prompt that comes between, so more
    is kept while online prompts take more of the time: online_share, from 0 to 1.
    """
    due_s = output_tokens * tpot_slo_s
    most_s = (slo.most_kept + slo.kept_for_bursts * online_share) * tpot_slo_s
    return first_token_s + due_s - min((1.0 - slo.tpot_margin) * due_s, most_s)


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

    A row that is late catches up while steps take less than its TPOT, all the faster the fewer
    offline rows there are; no offline prompt runs until it has. A short pause of the rows is
    cheaper than a long one of the prompts.
    """
    budget_s = decode_budget(snapshot)
    online = snapshot.online
    if online.tightest_tpot_s is None or online.earliest_deadline_s is None:
        return budget_s
    late_s = max(snapshot.now_s + snapshot.in_flight_s - online.earliest_deadline_s, 0.0)
    steady_s = min(
        slo.tpot_margin * online.tightest_tpot_s,
        online.tightest_tpot_s - late_s / slo.catch_up_tokens,
    )
    return max(budget_s, min(steady_s / snapshot.delivery_steps, gap_budget(snapshot)))


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
