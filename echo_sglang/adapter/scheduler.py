"""SGLang's scheduler with Echo's decisions: overrides only, no policy.

Base: sglang/srt/managers/scheduler.py::Scheduler of the pinned release. Every iteration:
`_should_defer_prefill` (called once, after finished rows left and the last prefill was
merged) takes the snapshot, decides and releases; `prefill_candidates` names who may be
admitted; the prefill adder keeps to the plan; `process_batch_result` measures and learns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

from sglang.srt.managers.io_struct import (
    AbortReq,
    SetInternalStateReqOutput,
    TokenizedGenerateReqInput,
)
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.mem_cache.radix_cache import RadixKey

from echo_sglang.adapter.compat import check_scheduler
from echo_sglang.adapter.offline_queue import OfflineQueue
from echo_sglang.adapter.prefill_adder import EchoPrefillAdder
from echo_sglang.adapter.release import release_chunk, release_rows
from echo_sglang.adapter.requests import (
    EchoReq,
    can_release,
    can_wait_as_tokens,
    is_offline,
    tag_of,
)
from echo_sglang.adapter.routes import DUMP_KEY
from echo_sglang.adapter.snapshots import take_snapshot
from echo_sglang.adapter.status import build_status
from echo_sglang.adapter.step_timer import StepTimer, batch_shape
from echo_sglang.config import CONFIG_ENV, EchoConfig
from echo_sglang.domain.plan import ChunkAction, Reason, StepPlan
from echo_sglang.domain.tag import RequestTag, ServiceClass
from echo_sglang.errors import RequestError
from echo_sglang.estimate.step_time import StepTimeFitter
from echo_sglang.metrics import Instruments, prometheus_instruments
from echo_sglang.policy.arrivals import BurstEstimate
from echo_sglang.policy.attainment import AttainmentWindow, OnlineProgress
from echo_sglang.policy.coscheduler import decide
from echo_sglang.policy.decision_log import Decision, DecisionLog
from echo_sglang.policy.offline_pool import OfflineEntry, PoolSettings
from echo_sglang.policy.selection import SelectionSettings
from echo_sglang.policy.settings import CoschedulerSettings
from echo_sglang.policy.slack import SloSettings

DEFAULT_NEW_TOKENS = 128
"""What a request is taken to produce that does not say how much it may."""


class EchoScheduler(Scheduler):
    """Co-schedules online and offline requests. Subclass it as one subclasses SGLang's.

    Override `echo_clock` to run it on another clock; `echo_config` to configure it
    without the environment.
    """

    def echo_clock(self) -> float:
        """Seconds on a monotonic clock; the only clock Echo reads in this process."""
        return time.perf_counter()

    def echo_wall_clock(self) -> float:
        """Unix seconds, only to place deadlines that clients gave on the monotonic clock."""
        return time.time()

    def echo_config(self) -> EchoConfig:
        """The configuration that the launcher put into the environment."""
        import os

        return EchoConfig.from_json(os.environ[CONFIG_ENV])

    # ------------------------------------------------------------------ start

    def init_schedule_policy(self) -> None:
        """Runs once cache, pools and chunk size are known."""
        super().init_schedule_policy()
        config = self.echo_config()
        check_scheduler(self)
        self.echo_settings = settings_of(config)
        self.selection_settings = SelectionSettings()
        self.reserve_tokens = config.reserve_for(self.max_total_num_tokens)
        self.max_pooled = config.max_pooled
        self.offline_queue = OfflineQueue(
            PoolSettings(max_wait_s=config.max_offline_wait_s), self._build_req
        )
        self.fitter = StepTimeFitter(coverage=config.coverage)
        self.step_timer = StepTimer()
        self.bursts = BurstEstimate()
        self.attainment = AttainmentWindow()
        self.decision_log = DecisionLog(config.decision_log_size)
        self.decision_log_path = config.decision_log
        self.echo_step = 0
        self.echo_counters: dict[str, int] = {}
        self.online_denied_tokens = 0
        self.device_is_synchronous = str(self.device) == "cpu"
        self._plan = StepPlan(reason=Reason.IDLE)
        self._decided_s = self.echo_clock()
        self._captured: list[Req] | None = None
        self._adder: EchoPrefillAdder | None = None
        self.instruments: Instruments = prometheus_instruments(
            enabled=self.metrics_reporter.enable_metrics
        )

    # --------------------------------------------------------------- requests

    def _create_generation_req(
        self, recv_req: TokenizedGenerateReqInput, *args: Any, **kwargs: Any
    ) -> Req:
        req = EchoReq(*args, tag=tag_of(recv_req), **kwargs)
        if not req.is_offline:
            slo = self.echo_settings.slo
            tag = req.tag
            req.progress = OnlineProgress(
                arrival_s=self.echo_clock(),
                ttft_slo_s=slo.ttft_slo_s if tag.ttft_ms is None else tag.ttft_ms / 1e3,
                tpot_slo_s=slo.tpot_slo_s if tag.tpot_ms is None else tag.tpot_ms / 1e3,
            )
        return req

    def handle_generate_request(
        self, recv_req: TokenizedGenerateReqInput, *, mm_input_error: str | None = None
    ) -> None:
        """Offline requests that need no preparation wait unbuilt; all others go on."""
        tag = self._tag_or_online(recv_req)
        pools = (
            tag.service_class is ServiceClass.OFFLINE
            and mm_input_error is None
            and can_wait_as_tokens(recv_req)
            and len(recv_req.input_ids) < self.max_req_input_len
        )
        if not pools:
            super().handle_generate_request(recv_req, mm_input_error=mm_input_error)
            return
        if len(self.offline_queue) >= self.max_pooled:
            self._refuse_pooled(recv_req)
            return
        now_s = self.echo_clock()
        self.offline_queue.add_tokenized(
            recv_req,
            tag,
            now_s=now_s,
            deadline_s=self._deadline_s(tag, now_s),
            cached_tokens=self._match(recv_req.input_ids, recv_req),
            max_new_tokens=self._allowed_new_tokens(recv_req),
        )

    def _add_request_to_queue(self, req: Req, is_retracted: bool = False) -> None:
        if self._captured is not None:
            # It has waited since it arrived, not since it was built.
            req.time_stats.set_wait_queue_entry_time(req.time_stats.scheduler_recv_time)
            self._captured.append(req)
            return
        if is_offline(req) and req.to_finish is None and not req.finished():
            now_s = self.echo_clock()
            self.offline_queue.add_req(
                req,
                now_s=now_s,
                deadline_s=self._deadline_s(req.tag, now_s),
                parked_at_step=self.echo_step if req.retraction_count else None,
            )
            req.time_stats.set_wait_queue_entry_time()
            return
        super()._add_request_to_queue(req, is_retracted)
        if isinstance(req, EchoReq) and not is_retracted:
            req.cached_tokens_at_arrival = self._match(req.origin_input_ids, req)
            uncached = len(req.origin_input_ids) - req.cached_tokens_at_arrival
            self.bursts.observe(self.echo_clock(), uncached)

    def abort_request(self, recv_req: AbortReq) -> None:
        """SGLang aborts what it queues or runs; the pool is Echo's to search."""
        taken = self.offline_queue.take_matching(recv_req.rid, everything=recv_req.abort_all)
        for waiting in taken:
            source = waiting.req if waiting.req is not None else waiting.tokenized
            abort = AbortReq(rid=source.rid, finished_reason=recv_req.finished_reason)
            self.send_abort_output(abort, source)
        super().abort_request(recv_req)

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

    # --------------------------------------------------------------- deciding

    def _should_defer_prefill(self, running_batch: ScheduleBatch) -> bool:
        """Decide this iteration; True keeps SGLang from prefilling in it."""
        self.echo_step += 1
        now_s = self._decided_s = self.echo_clock()
        snapshot = take_snapshot(self, running_batch, now_s)
        self.online_denied_tokens = 0
        plan = decide(snapshot, self.fitter.model, self.echo_settings)
        self._plan = plan
        if plan.reason is not Reason.IDLE or snapshot.online.rows or snapshot.offline_rows:
            self.decision_log.append(Decision(snapshot, self.fitter.model, plan))
        self._release(plan, running_batch, now_s)
        if plan.runs_prefill:
            running_batch.batch_is_full = False
        deferred = super()._should_defer_prefill(running_batch)
        compiling = self.grammar_manager.has_waiting_grammars()
        return deferred or not (plan.runs_prefill or compiling)

    def _release(self, plan: StepPlan, running_batch: ScheduleBatch, now_s: float) -> None:
        if plan.release:
            released = release_rows(running_batch, self.tree_cache, frozenset(plan.release))
            self._park(released, now_s)
            self._count("rows_released", len(released))
        if plan.chunk_action is ChunkAction.RELEASE:
            chunk, self.chunked_req = self.chunked_req, None
            release_chunk(chunk, self.tree_cache)
            self._park([chunk], now_s)
            self._count("chunks_released", 1)

    def _park(self, reqs: list[Req], now_s: float) -> None:
        for req in reqs:
            self.offline_queue.add_req(
                req,
                now_s=now_s,
                deadline_s=self._deadline_s(req.tag, now_s),
                parked_at_step=self.echo_step,
            )

    # --------------------------------------------------------------- applying

    def has_prefill_candidates(self) -> bool:
        """Seam `prefill-candidates`: anything in the plan or waiting to be refused."""
        return bool(self._plan.online_order or self._plan.offline_order)

    def prefill_candidates(self) -> Iterator[Req]:
        """Seam `prefill-candidates`: the plan's order, offline requests built when reached."""
        waiting = {req.rid: req for req in self.waiting_queue}
        for rid in self._plan.online_order:
            if rid in waiting:
                yield waiting[rid]
        for rid in self._plan.offline_order:
            req = self.offline_queue.materialize(rid)
            if req is not None:
                yield req

    def get_prefill_adder_class(self) -> Callable[..., EchoPrefillAdder]:
        """The adder of this iteration, bound to its plan."""
        return partial(self._make_adder, plan=self._plan)

    def _make_adder(self, *args: Any, **kwargs: Any) -> EchoPrefillAdder:
        self._adder = EchoPrefillAdder(*args, **kwargs)
        return self._adder

    def _get_new_batch_prefill_raw(self, *args: Any, **kwargs: Any) -> Any:
        self._adder = None
        batch, running_batch = super()._get_new_batch_prefill_raw(*args, **kwargs)
        if self._adder is not None:
            self.online_denied_tokens = self._adder.online_denied_tokens
            for req in self._adder.can_run_list:
                if req.rid in self.offline_queue:
                    self.offline_queue.admitted(req.rid)
        return batch, running_batch

    def update_running_batch(self, batch: ScheduleBatch) -> ScheduleBatch | None:
        """Offline rows give way, KV kept, before SGLang would retract anybody for memory."""
        while not batch.is_empty() and not batch.check_decode_mem():
            rows = [r for r in batch.reqs if is_offline(r) and can_release(r) and r.output_ids]
            if not rows or len(batch.reqs) == 1:
                break
            largest = max(rows, key=lambda r: r.seqlen - r.kv.cache_protected_len)
            released = release_rows(batch, self.tree_cache, frozenset([largest.rid]))
            self._park(released, self.echo_clock())
            self._count("rows_released_for_decode_memory", len(released))
        return super().update_running_batch(batch)

    # --------------------------------------------------------------- learning

    def run_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
        """Note what the device was given."""
        shape = batch_shape(batch)
        if shape is not None:
            self.step_timer.launched(shape, self._decided_s)
        result = super().run_batch(batch, *args, **kwargs)
        if shape is not None and self.device_is_synchronous and self.enable_overlap:
            self._learn(self.echo_clock())
        return result

    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None:
        """Measure the iteration and follow the progress of online requests."""
        if not self.device_is_synchronous:
            if result.copy_done is not None:
                result.copy_done.synchronize()
            self._learn(self.echo_clock())
        super().process_batch_result(batch, result)
        now_s = self.echo_clock()
        if self.device_is_synchronous and not self.enable_overlap:
            self._learn(now_s)
        for req in batch.reqs:
            self._note_progress(req, now_s)

    def _learn(self, now_s: float) -> None:
        measured = self.step_timer.ended(now_s)
        if measured is not None:
            self.fitter.observe(*measured)
            self.instruments.step(*measured, reason=self._plan.reason.value)

    def _note_progress(self, req: Req, now_s: float) -> None:
        if not isinstance(req, EchoReq):
            return
        if req.progress is not None:
            req.progress.note(len(req.output_ids), now_s)
        if not req.finished():
            return
        if req.progress is None:
            self._count("offline_finished", 1)
            self._count("offline_prompt_tokens", len(req.origin_input_ids))
            self._count("offline_output_tokens", len(req.output_ids))
            self._count("offline_cached_tokens", req.cached_tokens)
        elif req.output_ids:
            attained = self.attainment.finished(req.progress, now_s)
            self._count("online_attained" if attained else "online_missed", 1)
            self.instruments.online_finished(req.progress, attained)

    # ----------------------------------------------------------- introspection

    def get_internal_state(self, recv_req: Any) -> Any:
        """SGLang's internal state plus Echo's under "echo"."""
        output = super().get_internal_state(recv_req)
        output.internal_state["echo"] = build_status(self)
        return output

    def set_internal_state(self, recv_req: Any) -> Any:
        """SGLang's, plus the request for a dump that POST /echo/dump sends."""
        if DUMP_KEY in recv_req.server_args:
            return SetInternalStateReqOutput(updated=self.dump_decisions() > 0)
        return super().set_internal_state(recv_req)

    def dump_decisions(self) -> int:
        """Write the decision log to --echo-decision-log; returns the number of decisions."""
        if not self.decision_log_path:
            return 0
        with open(self.decision_log_path, "w", encoding="utf-8") as file:
            for line in self.decision_log.lines(self.echo_settings):
                file.write(line + "\n")
        return len(self.decision_log)

    def probe_cached(self, entry: OfflineEntry) -> int:
        """Tokens of a pooled request that the KV cache holds, without touching the cache."""
        namespace = self.offline_queue.namespace_of(entry.rid)
        if namespace == (None, None):
            return self._probe(entry.tokens, *namespace)
        return self._probe(entry.tokens[1:], *namespace)

    def _match(self, tokens: Any, source: Any) -> int:
        return self._probe(tokens, source.extra_key, source.cache_salt)

    def _probe(self, tokens: Any, extra_key: str | None, cache_salt: str | None) -> int:
        core = getattr(self.tree_cache, "tree_core", None)
        if core is None or not self.tree_cache.supports_prefix_sharing():
            return 0
        key = RadixKey(token_ids=tokens, extra_key=extra_key, cache_salt=cache_salt)
        return int(core.match_full_device_prefix(key)[0])

    # ---------------------------------------------------------------- helpers

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

    def _refuse_pooled(self, recv_req: TokenizedGenerateReqInput) -> None:
        reason = {
            "type": "abort",
            "status_code": HTTPStatus.SERVICE_UNAVAILABLE,
            "message": f"The offline pool is full ({self.max_pooled} requests); retry later "
            "or raise --echo-max-pooled.",
        }
        self.send_abort_output(AbortReq(rid=recv_req.rid, finished_reason=reason), recv_req)

    def _count(self, name: str, amount: int) -> None:
        self.echo_counters[name] = self.echo_counters.get(name, 0) + amount
        self.instruments.count(name, amount)


def settings_of(config: EchoConfig) -> CoschedulerSettings:
    """The fields of the configuration that the co-scheduler uses."""
    return CoschedulerSettings(
        slo=SloSettings(
            ttft_slo_s=config.slo_ttft_ms / 1e3,
            tpot_slo_s=config.slo_tpot_ms / 1e3,
            ttft_margin=config.slo_margin,
            tpot_margin=config.slo_margin,
        ),
        min_chunk_tokens=config.min_chunk_tokens,
        min_parked_steps=config.min_parked_steps,
    )
