"""The rows of the running batch as a decision sees them.

Every iteration pays for this once a row: hence comprehensions and no calls where an attribute
will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS

from echo_sglang.adapter.requests import EchoReq, RowFacts, facts_of
from echo_sglang.domain.snapshot import OfflineRows, OnlineLoad

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler


class DecodingRows(list[Req]):
    """The rows of a mixed batch that decode. SGLang asks up to twice per row whether one is
    among them: O(1) here, not O(rows)."""

    def __init__(self, reqs: Sequence[Req]) -> None:
        super().__init__(reqs)
        self._rows = frozenset(reqs)

    def __contains__(self, req: object) -> bool:
        return req in self._rows


class RunningRows(NamedTuple):
    """growth_tokens: KV that all rows are still expected to need, by SGLang's own estimate."""

    online: OnlineLoad
    offline: OfflineRows
    growth_tokens: float


def running_rows(
    scheduler: EchoScheduler, batch: ScheduleBatch, now_s: float, in_flight_end_s: float
) -> RunningRows:
    """What decodes now. in_flight_end_s: when the tokens that the device computes are there."""
    reqs = [req for req in batch.reqs if req.finished_reason is None]
    facts = [getattr(req, "row_facts", None) or facts_of(req) for req in reqs]
    produced = [len(req.output_ids) for req in reqs]
    left = [f.max_new_tokens - tokens for f, tokens in zip(facts, produced, strict=True)]
    growth = _growth(facts, left, scheduler.new_token_ratio_tracker.current)
    offline = [f.is_offline for f in facts]
    online = [req for req, other in zip(reqs, offline, strict=True) if not other]
    columns = [list(compress(column, offline)) for column in (reqs, facts, produced, left)]
    return RunningRows(
        online=_online_load(scheduler, online, in_flight_end_s),
        offline=_offline_rows(scheduler, *columns, now_s=now_s),
        growth_tokens=growth,
    )


def _growth(facts: Sequence[RowFacts], left: Sequence[int], ratio: float) -> float:
    """By SGLang's estimate: as much as is allowed, but of what may end early only a share."""
    most = CLIP_MAX_NEW_TOKENS
    clipped = [0 if tokens < 0 else most if tokens > most else tokens for tokens in left]
    fixed = [tokens for f, tokens in zip(facts, clipped, strict=True) if f.ignores_eos]
    return ratio * sum(clipped) + (1.0 - ratio) * sum(fixed)


def _offline_rows(
    scheduler: EchoScheduler,
    reqs: Sequence[Req],
    facts: Sequence[RowFacts],
    produced: Sequence[int],
    left: Sequence[int],
    *,
    now_s: float,
) -> OfflineRows:
    """Column by column, which takes half the time of row by row. What each holds alone is not
    looked at."""
    if not reqs:
        return OfflineRows()
    kv_tokens = [f.prompt_tokens + tokens for f, tokens in zip(facts, produced, strict=True)]
    releasable = [
        tokens > 0 and f.can_resume and req.to_finish is None
        for req, f, tokens in zip(reqs, facts, produced, strict=True)
    ]
    urgencies = [1.0] * len(reqs)
    if any([f.has_deadline for f in facts]):
        urgency_of = scheduler.offline_queue.urgency_of_running
        urgencies = [urgency_of(req, now_s) for req in reqs]
    return OfflineRows(
        rids=tuple([f.rid for f in facts]),
        kv_tokens=tuple(kv_tokens),
        private_tokens=(0,) * len(reqs),
        output_tokens=tuple(produced),
        remaining_tokens=tuple([tokens if tokens > 0 else 0 for tokens in left]),
        releasable=tuple(releasable),
        preemptions=tuple([req.retraction_count for req in reqs]),
        urgencies=tuple(urgencies),
    )


def clipped_new_tokens(req: Req) -> int:
    """What SGLang expects a request to produce at most."""
    left = req.sampling_params.max_new_tokens - len(req.output_ids)
    return min(max(left, 0), CLIP_MAX_NEW_TOKENS)


def _online_load(
    scheduler: EchoScheduler, reqs: Sequence[Req], in_flight_end_s: float
) -> OnlineLoad:
    if not reqs:
        return OnlineLoad()
    slo = scheduler.echo_settings.slo
    in_flight = _in_flight(scheduler)
    deadlines_s: list[float] = []
    gaps_s: list[float] = []
    tpots_s: list[float] = []
    for req in reqs:
        progress = req.progress if isinstance(req, EchoReq) else None
        if progress is None:
            continue
        # A row that decodes has its first token, be it noted yet or not.
        unseen = progress.first_token_s is None or req in in_flight
        seen_s = in_flight_end_s if unseen else None
        due_s, late_s = progress.decode_limits_s(slo, seen_s, scheduler.online_share.share)
        deadlines_s.append(due_s)
        gaps_s.append(late_s)
        tpots_s.append(progress.tpot_slo_s)
    return OnlineLoad(
        rows=len(reqs),
        kv_tokens=sum([len(req.origin_input_ids) + len(req.output_ids) for req in reqs]),
        earliest_deadline_s=min(deadlines_s, default=None),
        earliest_gap_s=min(gaps_s, default=None),
        tightest_tpot_s=min(tpots_s, default=None),
    )


def _in_flight(scheduler: EchoScheduler) -> frozenset[Req]:
    """Whose next token the device computes at this moment.

    A synchronous device has computed it already; when it is seen is what `delivery_steps` says.
    """
    batch = scheduler.last_batch
    if scheduler.device_is_synchronous or batch is None or scheduler.step_timer.in_flight() is None:
        return frozenset()
    return frozenset(batch.reqs)
