"""How requests enter and leave: online ones into SGLang's queue, offline ones into the pool."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.radix_cache import RadixKey

from echo_sglang.adapter.clock import ClockedScheduler
from echo_sglang.adapter.offline_queue import CachedPrefix, OfflineQueue
from echo_sglang.adapter.requests import (
    EchoReq,
    can_wait_as_tokens,
    is_offline,
    namespace_of,
    tag_of,
)
from echo_sglang.adapter.tree_core import EchoTreeCore
from echo_sglang.domain.tag import RequestTag, ServiceClass
from echo_sglang.errors import RequestError
from echo_sglang.policy.arrivals import BurstEstimate
from echo_sglang.policy.attainment import OnlineProgress
from echo_sglang.policy.offline_pool import OfflineEntry
from echo_sglang.policy.preemption import rest_steps
from echo_sglang.policy.settings import CoschedulerSettings

DEFAULT_NEW_TOKENS = 128
"""What a request is taken to produce that does not say how much it may."""


NOTHING_CACHED = CachedPrefix(0, -1, 0)


class RequestIntake(ClockedScheduler):
    """The part of EchoScheduler that requests meet. EchoScheduler sets what is declared here."""

    echo_settings: CoschedulerSettings
    echo_core: EchoTreeCore | None
    offline_queue: OfflineQueue
    bursts: BurstEstimate
    echo_step: int
    max_pooled: int
    _captured: list[Req] | None
    _count: Callable[[str, int], None]

    def _create_generation_req(
        self, recv_req: TokenizedGenerateReqInput, *args: Any, **kwargs: Any
    ) -> Req:
        req = EchoReq(*args, tag=tag_of(recv_req), **kwargs)
        if not req.is_offline:
            slo = self.echo_settings.slo
            tag = req.tag
            req.progress = OnlineProgress(
                arrival_s=self.arrived_s(req),
                ttft_slo_s=slo.ttft_slo_s if tag.ttft_ms is None else tag.ttft_ms / 1e3,
                tpot_slo_s=slo.tpot_slo_s if tag.tpot_ms is None else tag.tpot_ms / 1e3,
            )
        return req

    def handle_generate_request(
        self, recv_req: TokenizedGenerateReqInput, *, mm_input_error: str | None = None
    ) -> None:
        """Offline requests that need no preparation wait unbuilt; all others go on."""
        if mm_input_error is not None or not self._waits_as_tokens(recv_req):
            super().handle_generate_request(recv_req, mm_input_error=mm_input_error)
            return
        refused_for = self._refuse_now()
        if refused_for is not None:
            self._refuse(recv_req, refused_for)
            return
        now_s, tag = self.echo_clock(), tag_of(recv_req)
        self.offline_queue.add_tokenized(
            recv_req,
            tag,
            now_s=now_s,
            deadline_s=self._deadline_s(tag, now_s),
            cached_tokens=self._match(recv_req.input_ids, recv_req),
            max_new_tokens=self._allowed_new_tokens(recv_req),
        )

    def _waits_as_tokens(self, recv_req: TokenizedGenerateReqInput) -> bool:
        """True for an offline request that needs no preparation before it is chosen."""
        tag = self._tag_or_online(recv_req)
        return (
            tag.service_class is ServiceClass.OFFLINE
            and can_wait_as_tokens(recv_req)
            and len(recv_req.input_ids) < self.max_req_input_len
        )

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        if self._captured is not None:
            # It has waited since it arrived, not since it was built.
            req.time_stats.set_wait_queue_entry_time(req.time_stats.scheduler_recv_time)
            self._captured.append(req)
            return
        if is_offline(req) and req.to_finish is None and not req.finished():
            now_s = self.echo_clock()
            times = req.retraction_count
            self.offline_queue.add_req(
                req,
                now_s=now_s,
                deadline_s=self._deadline_s(req.tag, now_s),
                parked_at_step=self.echo_step if times else None,
                rest_steps=rest_steps(times, self.echo_settings.min_parked_steps) if times else 0,
            )
            req.time_stats.set_wait_queue_entry_time()
            return
        super()._add_request_to_queue(req, is_retracted)
        if isinstance(req, EchoReq) and not is_retracted:
            req.cached_tokens_at_arrival = self._match(req.origin_input_ids, req)
            if self.echo_core is not None:
                self.echo_core.online_arrived(
                    RadixKey(req.origin_input_ids, req.extra_key, cache_salt=req.cache_salt)
                )
            uncached = len(req.origin_input_ids) - req.cached_tokens_at_arrival
            self.bursts.observe(self.echo_clock(), uncached)

    def abort_request(self, recv_req: AbortReq) -> None:
        """SGLang aborts what it queues or runs; the pool is Echo's to search."""
        taken = self.offline_queue.take_matching(recv_req.rid, everything=recv_req.abort_all)
        for waiting in taken:
            if waiting.req is None:
                self._count("offline_aborted", 1)
            else:
                self._release_aborted_request(waiting.req)
                self.beam_coordinator.retire_group(waiting.req)
            abort = AbortReq(rid=waiting.source.rid, finished_reason=recv_req.finished_reason)
            self.send_abort_output(abort, waiting.source)
        super().abort_request(recv_req)

    def _release_aborted_request(self, req: Req) -> None:
        """SGLang calls this for what is aborted between two iterations, such as half a prefill."""
        super()._release_aborted_request(req)
        if isinstance(req, EchoReq) and req.is_offline and not req.end_noted:
            req.end_noted = True
            self._count("offline_aborted", 1)

    def is_fully_idle(self, for_health_check: bool = False, ignore_waiting: bool = False) -> bool:
        """Not idle while offline requests wait."""
        idle = super().is_fully_idle(for_health_check, ignore_waiting)
        return idle and (ignore_waiting or len(self.offline_queue) == 0)

    def record_weight_version_change(self, new_version: str | None) -> None:
        """Released requests that wait with output already given are alive too."""
        parked = list(self.offline_queue.built_reqs())
        self.waiting_queue.extend(parked)
        try:
            super().record_weight_version_change(new_version)
        finally:
            if parked:
                del self.waiting_queue[-len(parked) :]

    def probe_cached(self, entry: OfflineEntry) -> int:
        """Tokens of a pooled request that the KV cache holds, without touching the cache."""
        queue, core = self.offline_queue, self.echo_core
        known = queue.cached_end(entry.rid)
        if known is not None and core is not None and core.is_cached(known.node_id):
            return known.tokens
        first = queue.first_tokens(entry.rid)
        if first is not None and core is not None and not core.begins_cached(first):
            return 0
        found = self._probe(queue.tokens(entry.rid), *queue.namespace_of(entry.rid))
        most = (entry.num_tokens - 1) // self.page_size * self.page_size
        if found.tokens == found.node_end >= most:
            queue.note_cached_end(entry.rid, found)
        return found.tokens

    def _match(self, tokens: Any, source: Any) -> int:
        return self._probe(tokens, *namespace_of(source)).tokens

    def _probe(self, tokens: Any, extra_key: str | None, cache_salt: str | None) -> CachedPrefix:
        core = getattr(self.tree_cache, "tree_core", None)
        if core is None or not self.tree_cache.supports_prefix_sharing():
            return NOTHING_CACHED
        key = RadixKey(token_ids=tokens, extra_key=extra_key, cache_salt=cache_salt)
        return CachedPrefix(*core.match_full_device_prefix(key))

    def _build_req(self, recv_req: TokenizedGenerateReqInput) -> Req | None:
        self._captured = []
        try:
            super().handle_generate_request(recv_req)
            return self._captured[0] if self._captured else None
        finally:
            self._captured = None

    def _tag_or_online(self, recv_req: TokenizedGenerateReqInput) -> RequestTag:
        try:
            return tag_of(recv_req)
        except RequestError:
            recv_req.sampling_params.custom_params = None
            return RequestTag()

    def _allowed_new_tokens(self, recv_req: TokenizedGenerateReqInput) -> int:
        """As `init_req_max_new_tokens` cuts it, lest a request seems larger than the pool."""
        wanted = recv_req.sampling_params.max_new_tokens
        room = self.max_req_len - len(recv_req.input_ids) - 1
        return max(min(DEFAULT_NEW_TOKENS if wanted is None else wanted, room), 0)

    def _deadline_s(self, tag: RequestTag, now_s: float) -> float | None:
        if tag.deadline_unix_s is None:
            return None
        return now_s + (tag.deadline_unix_s - self.echo_wall_clock())

    def _refuse_now(self) -> str | None:
        """Why no offline request is taken in at the moment; None if one is."""
        if len(self.offline_queue) < self.max_pooled:
            return None
        return (
            f"The offline pool is full ({self.max_pooled} requests); retry later "
            "or raise --echo-max-pooled."
        )

    def _refuse(self, source: Any, message: str) -> None:
        """Answer a request that holds no KV with 503."""
        reason = {
            "type": "abort",
            "status_code": HTTPStatus.SERVICE_UNAVAILABLE,
            "message": message,
        }
        self.send_abort_output(AbortReq(rid=source.rid, finished_reason=reason), source)
