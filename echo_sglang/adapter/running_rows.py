"""The rows of the running batch as a decision sees them, in one pass over them.

Every iteration pays for this once a row: hence plain loops and no calls where an attribute
will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS

from echo_sglang.adapter.requests import EchoReq, facts_of
from echo_sglang.domain.snapshot import OfflineRows, OnlineLoad

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler


class RunningRows(NamedTuple):
    """growth_tokens: KV that all rows are still expected to need, by SGLang's own estimate."""

    online: OnlineLoad
    offline: OfflineRows
    growth_tokens: float


def running_rows(
    scheduler: EchoScheduler, batch: ScheduleBatch, now_s: float, in_flight_end_s: float
) -> RunningRows:
    """What decodes now. in_flight_end_s: when the tokens that the device computes are there."""
    ratio = scheduler.new_token_ratio_tracker.current
    urgency_of = scheduler.offline_queue.urgency_of_running
    online: list[Req] = []
    offline: list[tuple[str, int, int, int, int, bool, int, float]] = []
    growth = 0.0
    for req in batch.reqs:
        if req.finished_reason is not None:
            continue
        facts = facts_of(req)
        produced = len(req.output_ids)
        left = facts.max_new_tokens - produced
        if left > 0:
            clipped = left if left < CLIP_MAX_NEW_TOKENS else CLIP_MAX_NEW_TOKENS
            growth += clipped if facts.ignores_eos else clipped * ratio
        if not facts.is_offline:
            online.append(req)
            continue
        kv_tokens = facts.prompt_tokens + produced
        own = kv_tokens - req.kv.cache_protected_len
        can_go = produced > 0 and facts.can_resume and req.to_finish is None
        entry = getattr(req, "admitted_as", None)
        has_deadline = entry is not None and entry.deadline_s is not None
        # In the order of the columns of OfflineRows.
        offline.append(
            (facts.rid, kv_tokens, own if own > 0 else 0, produced, left if left > 0 else 0,
             can_go, req.retraction_count, urgency_of(req, now_s) if has_deadline else 1.0)
        )  # fmt: skip
    return RunningRows(
        online=_online_load(scheduler, online, in_flight_end_s),
        offline=OfflineRows.of_tuples(offline),
        growth_tokens=growth,
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
    in_flight = _in_flight_rids(scheduler)
    deadlines_s: list[float] = []
    gaps_s: list[float] = []
    tpots_s: list[float] = []
    for req in reqs:
        progress = req.progress if isinstance(req, EchoReq) else None
        if progress is None:
            continue
        # A row that decodes has its first token, be it noted yet or not.
        unseen = progress.first_token_s is None or req.rid in in_flight
        due_s, late_s = progress.decode_limits_s(slo, in_flight_end_s if unseen else None)
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


def _in_flight_rids(scheduler: EchoScheduler) -> frozenset[str]:
    """Whose next token the device computes at this moment.

    A synchronous device has computed it already; when it is seen is what `delivery_steps` says.
    """
    batch = scheduler.last_batch
    if scheduler.device_is_synchronous or batch is None or scheduler.step_timer.in_flight() is None:
        return frozenset()
    return frozenset([req.rid for req in batch.reqs])
