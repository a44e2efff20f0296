"""The rows of the running batch as a decision sees them, in one pass over them.

Every iteration pays for this once a row: hence plain loops and no calls where an attribute
will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS

from echo_sglang.adapter.requests import EchoReq, can_resume, is_offline
from echo_sglang.domain.snapshot import OfflineRows, OnlineLoad

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler


class RunningRows(NamedTuple):
    """growth_tokens: KV that all rows are still expected to need, by SGLang's own estimate."""

    online: OnlineLoad
    offline: OfflineRows
    growth_tokens: float


def running_rows(
    scheduler: EchoScheduler, batch: ScheduleBatch, in_flight_end_s: float
) -> RunningRows:
    """What decodes now. in_flight_end_s: when the tokens that the device computes are there."""
    ratio = scheduler.new_token_ratio_tracker.current
    online: list[Req] = []
    offline: list[Req] = []
    growth = 0.0
    for req in batch.reqs:
        if req.finished_reason is not None:
            continue
        params = req.sampling_params
        left = params.max_new_tokens - len(req.output_ids)
        if left > 0:
            clipped = left if left < CLIP_MAX_NEW_TOKENS else CLIP_MAX_NEW_TOKENS
            growth += clipped if params.ignore_eos else clipped * ratio
        (offline if is_offline(req) else online).append(req)
    return RunningRows(
        online=_online_load(scheduler, online, in_flight_end_s),
        offline=_offline_rows(offline),
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


def _offline_rows(reqs: Sequence[Req]) -> OfflineRows:
    produced = [len(req.output_ids) for req in reqs]
    kv = [len(req.origin_input_ids) + n for req, n in zip(reqs, produced, strict=True)]
    in_tree = [req.kv.cache_protected_len for req in reqs]
    allowed = [req.sampling_params.max_new_tokens for req in reqs]
    return OfflineRows(
        rids=tuple([req.rid for req in reqs]),
        kv_tokens=tuple(kv),
        private_tokens=tuple([max(k - t, 0) for k, t in zip(kv, in_tree, strict=True)]),
        output_tokens=tuple(produced),
        remaining_tokens=tuple([max(a - n, 0) for a, n in zip(allowed, produced, strict=True)]),
        releasable=tuple(
            [
                n > 0 and req.to_finish is None and can_resume(req)
                for req, n in zip(reqs, produced, strict=True)
            ]
        ),
        preemptions=tuple([req.retraction_count for req in reqs]),
        urgencies=(1.0,) * len(reqs),
    )


def _in_flight_rids(scheduler: EchoScheduler) -> frozenset[str]:
    """Whose next token the device computes at this moment.

    A synchronous device has computed it already; when it is seen is what `delivery_steps` says.
    """
    batch = scheduler.last_batch
    if scheduler.device_is_synchronous or batch is None or scheduler.step_timer.in_flight() is None:
        return frozenset()
    return frozenset([req.rid for req in batch.reqs])
