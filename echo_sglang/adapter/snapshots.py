"""Takes the snapshot that a decision is made on."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

from echo_sglang.adapter.demand import running_online
from echo_sglang.adapter.kv_space import kv_space
from echo_sglang.adapter.requests import EchoReq, can_release, is_offline
from echo_sglang.adapter.running_rows import clipped_new_tokens, running_rows
from echo_sglang.domain.snapshot import (
    ChunkInProgress,
    MemoryView,
    OfflineCandidate,
    OfflineRows,
    Snapshot,
    WaitingOnline,
)
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.policy.preemption import asks_for_memory
from echo_sglang.policy.selection import select_candidates

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler


def take_snapshot(scheduler: EchoScheduler, running_batch: ScheduleBatch, now_s: float) -> Snapshot:
    """Values only: nothing in it changes when the scheduler goes on. O(running rows)."""
    in_flight_s = _in_flight_s(scheduler, now_s)
    running = running_rows(scheduler, running_batch, now_s, now_s + in_flight_s)
    online, offline_rows = running.online, running.offline
    scheduler.reserve.observe(
        now_s,
        online.kv_tokens + _online_chunk_tokens(scheduler),
        lambda: running_online(running_batch),
    )
    waiting = tuple(_waiting_online(scheduler, req, now_s) for req in scheduler.waiting_queue)
    memory = _memory(scheduler, running_batch, running.growth_tokens, now_s)
    free_slots = _free_slots(scheduler, running_batch)
    if offline_rows and asks_for_memory(waiting, memory, free_slots, scheduler.page_size):
        offline_rows = _with_what_each_holds_alone(scheduler, running_batch, offline_rows)
    return Snapshot(
        step=scheduler.echo_step,
        now_s=now_s,
        mixed=scheduler.is_mixed_chunk,
        page_size=scheduler.page_size,
        chunk_cap_tokens=scheduler.chunked_prefill_size,
        free_slots=free_slots,
        memory=memory,
        in_flight_s=in_flight_s,
        delivery_steps=2 if scheduler.enable_overlap and scheduler.device_is_synchronous else 1,
        online=online,
        offline_rows=offline_rows,
        waiting_online=waiting,
        chunk=_chunk(scheduler, now_s),
        candidates=_candidates(scheduler, now_s),
        pooled=len(scheduler.offline_queue),
        typical_burst_tokens=scheduler.bursts.tokens,
        last_chunk_tokens=scheduler.last_chunk_tokens,
        impact=None if scheduler.impact is None else scheduler.impact.room(now_s),
    )


def _with_what_each_holds_alone(
    scheduler: EchoScheduler, batch: ScheduleBatch, rows: OfflineRows
) -> OfflineRows:
    """Rows that may have to give KV back. A walk up the tree for each, so only then."""
    reqs = {req.rid: req for req in batch.reqs}
    private = [
        max(kv_tokens - reqs[rid].kv.cache_protected_len, 0) + _held_alone(scheduler, reqs[rid])
        for rid, kv_tokens in zip(rows.rids, rows.kv_tokens, strict=True)
    ]
    return replace(rows, private_tokens=tuple(private))


def _held_alone(scheduler: EchoScheduler, req: Req) -> int:
    """Tokens in the tree that only this row holds. SGLang's own core does not tell: 0 then."""
    core = scheduler.echo_core
    return 0 if core is None or req.lock is None else core.held_alone(req.lock.node)


def _waiting_online(scheduler: EchoScheduler, req: Req, now_s: float) -> WaitingOnline:
    total = len(req.origin_input_ids) + len(req.output_ids)
    cached = 0
    deadline_s = now_s
    if isinstance(req, EchoReq):
        cached = min(req.cached_tokens_at_arrival, total - 1)
        if req.progress is not None:
            deadline_s = req.progress.next_deadline_s(scheduler.echo_settings.slo)
    return WaitingOnline(
        rid=req.rid,
        deadline_s=deadline_s,
        extend_tokens=max(total - cached, 1),
        prefix_tokens=max(cached, 0),
        max_new_tokens=clipped_new_tokens(req),
    )


def _chunk(scheduler: EchoScheduler, now_s: float) -> ChunkInProgress | None:
    req = scheduler.chunked_req
    if req is None:
        return None
    offline = is_offline(req)
    progress = req.progress if isinstance(req, EchoReq) else None
    return ChunkInProgress(
        rid=req.rid,
        service_class=ServiceClass.OFFLINE if offline else ServiceClass.ONLINE,
        remaining_tokens=max(req.seqlen - req.prefix_len, 1),
        prefix_tokens=req.prefix_len,
        deadline_s=None
        if progress is None
        else progress.next_deadline_s(scheduler.echo_settings.slo),
        releasable=offline and can_release(req),
        parked_steps=scheduler.chunk_parked_steps,
        urgency=scheduler.offline_queue.urgency_of_running(req, now_s) if offline else 1.0,
    )


def _candidates(scheduler: EchoScheduler, now_s: float) -> tuple[OfflineCandidate, ...]:
    queue, chunk = scheduler.offline_queue, scheduler.chunked_req
    if not len(queue):
        return ()
    computing: set[int] = set()
    if chunk is not None:
        computed = queue.mark_tokens(chunk) + chunk.prefix_len
        computing = scheduler.being_computed.by(
            chunk.rid, partial(queue.marked_tokens, chunk), computed
        )
    return select_candidates(
        queue.pool,
        scheduler.probe_cached,
        now_s=now_s,
        step=scheduler.echo_step,
        wanted_tokens=scheduler.wanted_tokens,
        settings=scheduler.selection_settings,
        computing=computing,
    )


def _memory(
    scheduler: EchoScheduler, batch: ScheduleBatch, growth: float, now_s: float
) -> MemoryView:
    space = kv_space(scheduler)
    chunk = scheduler.chunked_req
    if chunk is not None:
        growth += chunk.seqlen - chunk.prefix_len + clipped_new_tokens(chunk)
    return MemoryView(
        total_tokens=scheduler.max_total_num_tokens,
        available_tokens=space.available,
        growth_tokens=int(growth) + scheduler.page_size * len(batch.reqs),
        reserve_tokens=scheduler.reserve.reserve_tokens(now_s),
        denied_tokens=scheduler.online_denied_tokens,
        protected_tokens=_protected_tokens(scheduler),
        free_tokens=space.free,
        victim_hits=_victim_hits(scheduler, space.free - len(batch.reqs)),
    )


def _online_chunk_tokens(scheduler: EchoScheduler) -> int:
    """KV of an online prompt whose prefill is half done."""
    chunk = scheduler.chunked_req
    return 0 if chunk is None or is_offline(chunk) else int(chunk.prefix_len)


def _protected_tokens(scheduler: EchoScheduler) -> int:
    core = scheduler.echo_core
    return 0 if core is None else core.policy.protected_tokens()


def _victim_hits(scheduler: EchoScheduler, free_tokens: int) -> float:
    """Future hits of a token that this iteration would evict; 0.0 if it cannot evict any."""
    core = scheduler.echo_core
    if core is None or free_tokens >= scheduler.chunked_prefill_size:
        return 0.0
    if scheduler.ranks.alone:
        core.rank()
    return core.victim_hits()


def _free_slots(scheduler: EchoScheduler, batch: ScheduleBatch) -> int:
    running = len(batch.reqs)
    slots = scheduler.get_num_allocatable_reqs(running, running_batch=batch)
    held = 0 if scheduler.chunked_req is None else 1
    return min(slots, scheduler.max_running_requests - running - held)


def _in_flight_s(scheduler: EchoScheduler, now_s: float) -> float:
    if scheduler.device_is_synchronous:
        return 0.0
    step = scheduler.step_timer.in_flight()
    if step is None:
        return 0.0
    predicted_s = scheduler.fitter.model.predict(step.shape)
    return scheduler.step_timer.rest_s(now_s, predicted_s)
