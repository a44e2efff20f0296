"""SGLang's scheduler with Echo's decisions: overrides only, no policy.

Base: sglang/srt/managers/scheduler.py::Scheduler of the pinned release. Every iteration:
`_should_defer_prefill` (called once, after finished rows left and the last prefill was
merged) takes the snapshot, decides (on the first rank; the others are told) and releases;
`prefill_candidates` names who may be admitted; the prefill adder keeps to the plan;
`process_batch_result` measures and learns.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from sglang.srt.managers.io_struct import SetInternalStateReqOutput
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

from echo_sglang.adapter.collector import SettledObjects
from echo_sglang.adapter.compat import check_scheduler
from echo_sglang.adapter.demand import reserve_of
from echo_sglang.adapter.drain import DRAIN_KEY
from echo_sglang.adapter.giving_back import OfflineReturn
from echo_sglang.adapter.grammar_manager import BoundedGrammarManager
from echo_sglang.adapter.kv_space import kv_space
from echo_sglang.adapter.learning import LateWork, StepLearning
from echo_sglang.adapter.offline_queue import OfflineQueue
from echo_sglang.adapter.paced_intake import OfflineLane
from echo_sglang.adapter.prefill_adder import EchoPrefillAdder
from echo_sglang.adapter.profiles import profile_for
from echo_sglang.adapter.ranks import (
    RankState,
    nothing_to_decide,
    path_of_replica,
    ranks_of,
)
from echo_sglang.adapter.redaction import redact
from echo_sglang.adapter.release import release_chunk, release_rows
from echo_sglang.adapter.requests import can_release, is_offline
from echo_sglang.adapter.routes import DUMP_KEY
from echo_sglang.adapter.running_rows import DecodingRows
from echo_sglang.adapter.short_pipeline import ShortPipeline
from echo_sglang.adapter.snapshots import take_snapshot
from echo_sglang.adapter.status import build_status
from echo_sglang.adapter.step_timer import StepTimer
from echo_sglang.adapter.step_tracer import make_step_tracer
from echo_sglang.adapter.tree_core import EchoTreeCore
from echo_sglang.config import CONFIG_ENV, EchoConfig, EvictionPolicy
from echo_sglang.domain.plan import ChunkAction, Reason, StepPlan
from echo_sglang.estimate.output_length import OutputLengths
from echo_sglang.estimate.step_time import StepTimeFitter
from echo_sglang.metrics import Instruments, prometheus_instruments
from echo_sglang.policy.arrivals import BurstEstimate, OnlineShare
from echo_sglang.policy.attainment import AttainmentWindow
from echo_sglang.policy.coscheduler import decide
from echo_sglang.policy.decision_log import Decision, DecisionLog
from echo_sglang.policy.impact import TPOT_IMPACT_SHARE, ImpactAccount, ImpactSettings
from echo_sglang.policy.offline_pool import PoolSettings
from echo_sglang.policy.preemption import RESULT_STEPS, rest_steps
from echo_sglang.policy.selection import BeingComputed, SelectionSettings, wanted_next
from echo_sglang.policy.settings import CoschedulerSettings
from echo_sglang.policy.slack import SloSettings
from echo_sglang.sim.environment import EMULATE_ENV


class EchoScheduler(OfflineReturn, ShortPipeline, StepLearning):
    """Co-schedules online and offline requests. Subclass it as one subclasses SGLang's.

    Override `echo_clock` to run it on another clock; `echo_config` to configure it
    without the environment.
    """

    def echo_config(self) -> EchoConfig:
        """The configuration that the launcher put into the environment."""
        return EchoConfig.from_json(os.environ[CONFIG_ENV])

    # ------------------------------------------------------------------ start

    def init_grammar_manager(self) -> None:
        """Instead of SGLang's, one whose bound on compiling is in seconds."""
        self.grammar_manager = BoundedGrammarManager(self, self.echo_config().max_grammar_s)

    def init_schedule_policy(self) -> None:
        """Runs once cache, pools and chunk size are known."""
        super().init_schedule_policy()
        config = self.echo_config()
        check_scheduler(self, EvictionPolicy(config.eviction))
        self.echo_settings = settings_of(config)
        self.selection_settings = SelectionSettings()
        self.output_lengths = OutputLengths()
        self.reserve = reserve_of(config, self.max_total_num_tokens, self.output_lengths)
        self.max_pooled = config.max_pooled
        self.offline_lane = OfflineLane()
        self.ranks = ranks_of(self)
        self._agreed_s = 0.0
        self.offline_queue = OfflineQueue(
            PoolSettings(
                max_wait_s=config.max_offline_wait_s,
                turn_tokens=config.turn_tokens,
                weights=config.weights_of_jobs(),
            ),
            self._build_req,
            page_size=self.page_size,
        )
        self.being_computed = BeingComputed(self.offline_queue.pool, self.selection_settings)
        self.echo_core = self._attach_core()
        self.echo_coverage = config.coverage
        self.server_profile = profile_for(self, config)
        self.fitter = StepTimeFitter(
            start=None if self.server_profile is None else self.server_profile.profile.model,
            coverage=config.coverage,
        )
        self.step_timer = StepTimer()
        self._late_work = LateWork()
        self.step_tracer = make_step_tracer(self, config)
        self.settled = SettledObjects()
        self.bursts = BurstEstimate()
        self.online_share = OnlineShare()
        self.impact = impact_of(config)
        self.attainment = AttainmentWindow()
        self.decision_log = DecisionLog(config.decision_log_size)
        self.decision_log_path = config.decision_log
        self.echo_step = 0
        self.echo_counters: dict[str, int] = {}
        self.online_denied_tokens = 0
        self.last_chunk_tokens = self.chunk_parked_steps = 0
        self.wanted_tokens = self.chunked_prefill_size
        emulated = EMULATE_ENV in os.environ
        self.device_is_synchronous = str(self.device) == "cpu" and not emulated
        self._plan = StepPlan(reason=Reason.IDLE)
        self._decided_s = self.echo_clock()
        self._captured: list[Req] | None = None
        self._adder: EchoPrefillAdder | None = None
        self.instruments: Instruments = prometheus_instruments(
            enabled=self.metrics_reporter.enable_metrics and self.ranks.leads
        )

    def _attach_core(self) -> EchoTreeCore | None:
        """Let Echo's tree core, if it is there, follow the pool and a clock that all ranks have."""
        core = getattr(self.tree_cache, "tree_core", None)
        if not isinstance(core, EchoTreeCore):
            return None
        queue = self.offline_queue
        core.attach(self.cache_clock, queue.pool.index, queue.namespaces)
        queue.listener = core.references_changed
        return core

    # --------------------------------------------------------------- deciding

    def _should_defer_prefill(self, running_batch: ScheduleBatch) -> bool:
        """Decide this iteration; True keeps SGLang from prefilling in it."""
        self.echo_step += 1
        self.settled.settle()
        if self.gives_back:
            self._give_running_back(running_batch)
        plan = self._plan = self._next_plan(running_batch)
        self.last_chunk_tokens = plan.chunk_tokens
        self.online_share.decided(self._decided_s, plan.chunk_tokens, plan.offline_tokens)
        self.wanted_tokens = wanted_next(
            self.wanted_tokens,
            plan.chunk_tokens,
            self.chunked_prefill_size,
            self.selection_settings,
        )
        parked = plan.chunk_action is ChunkAction.PARK
        self.chunk_parked_steps = self.chunk_parked_steps + 1 if parked else 0
        self._release(plan, running_batch, self._decided_s)
        if plan.runs_prefill:
            running_batch.batch_is_full = False
        deferred = super()._should_defer_prefill(running_batch)
        compiling = self.grammar_manager.has_waiting_grammars()
        return deferred or not (plan.runs_prefill or compiling)

    def on_idle(self) -> None:
        """Nothing runs or waits: a moment to look for garbage."""
        super().on_idle()
        self.settled.idle(self.echo_clock())

    def _next_plan(self, running_batch: ScheduleBatch) -> StepPlan:
        """The plan of the first rank, the same on all of them."""
        if self.ranks.alone:
            self._decided_s, plan = self._decide(running_batch, new_time=True)
            return plan
        if nothing_to_decide(self, running_batch):
            if self.ranks.leads:
                self._decided_s, plan = self._decide(running_batch, new_time=False)
                assert not (plan.runs_prefill or plan.release), plan
            return StepPlan(reason=Reason.IDLE)
        state = RankState.of(self, running_batch)
        self._decided_s, plan = self.ranks.share(
            state, partial(self._decide, running_batch, new_time=True)
        )
        if not self.ranks.leads:
            self._cache_time(self._decided_s)
        return plan

    def _decide(self, running_batch: ScheduleBatch, *, new_time: bool) -> tuple[float, StepPlan]:
        """(when, what). new_time: this is a moment at which all ranks' caches grow older."""
        now_s = self.echo_clock()
        if new_time:
            self._cache_time(now_s)
        snapshot = take_snapshot(self, running_batch, now_s)
        self.online_denied_tokens = 0
        plan = decide(snapshot, self.fitter.model, self.echo_settings)
        if plan.reason is not Reason.IDLE or snapshot.online.rows or snapshot.offline_rows:
            self.decision_log.append(Decision(snapshot, self.fitter.model, plan))
        return now_s, plan

    def cache_clock(self) -> float:
        """The time that the KV cache goes by: that of the last decision where several ranks must
        evict alike."""
        return self.echo_clock() if self.ranks.alone else self._agreed_s

    def _cache_time(self, now_s: float) -> None:
        self._agreed_s = now_s
        if self.echo_core is not None:
            self.echo_core.policy.relearn(now_s)
            if not self.ranks.alone:
                # A leaf's place depends on when it was given; the first rank asks for it earlier.
                self.echo_core.rank()

    def _release(self, plan: StepPlan, running_batch: ScheduleBatch, now_s: float) -> None:
        if plan.release:
            available = kv_space(self).available
            released = release_rows(running_batch, self.tree_cache, frozenset(plan.release))
            self._park_rows(released, now_s, available, plan.budget_s)
            self._count("rows_released", len(released))
        if plan.chunk_action is ChunkAction.RELEASE:
            chunk, self.chunked_req = self.chunked_req, None
            release_chunk(chunk, self.tree_cache)
            self._park(chunk, now_s, RESULT_STEPS)
            self._count("chunks_released", 1)

    def _park_rows(
        self, reqs: list[Req], now_s: float, available: int = 0, budget_s: float = math.inf
    ) -> None:
        """available, budget_s: what was left when they gave way; inf lets nobody back early."""
        for req in reqs:
            rest = RESULT_STEPS  # the account decides when they come back
            if self.impact is None:
                rest = rest_steps(req.retraction_count, self.echo_settings.min_parked_steps)
            self._park(req, now_s, rest, available, budget_s)

    def _park(
        self, req: Req, now_s: float, rest: int, available: int = 0, budget_s: float = math.inf
    ) -> None:
        self.offline_queue.add_req(
            req,
            now_s=now_s,
            deadline_s=self._deadline_s(req.tag, now_s),
            parked_at_step=self.echo_step,
            rest_steps=rest,
            left_available_tokens=available,
            left_budget_s=budget_s,
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
        with self._allocating(offline=not self._serves_online()):
            batch, running_batch = super()._get_new_batch_prefill_raw(*args, **kwargs)
        if batch is not None and batch.decoding_reqs:
            batch.decoding_reqs = DecodingRows(batch.decoding_reqs)
        if self._adder is not None:
            self.online_denied_tokens = self._adder.online_denied_tokens
            for req in self._adder.can_run_list:
                if req.rid in self.offline_queue:
                    self.offline_queue.admitted(req.rid)
        return batch, running_batch

    def _serves_online(self) -> bool:
        """True if this iteration prefills for an online request."""
        chunk = self.chunked_req
        online_chunk = chunk is not None and not is_offline(chunk)
        return online_chunk or bool(self._plan.online_order)

    def _allocating(self, *, offline: bool) -> AbstractContextManager[None]:
        if self.echo_core is None:
            return nullcontext()
        return self.echo_core.allocating_for(offline=offline)

    def update_running_batch(self, batch: ScheduleBatch) -> ScheduleBatch | None:
        """Offline rows give way, KV kept, before SGLang would retract anybody for memory."""
        while not batch.is_empty() and not batch.check_decode_mem():
            rows = [r for r in batch.reqs if is_offline(r) and can_release(r) and r.output_ids]
            if not rows or len(batch.reqs) == 1:
                break
            now_s, queue = self.echo_clock(), self.offline_queue
            largest = max(
                rows,
                key=lambda r: (
                    (r.seqlen - r.kv.cache_protected_len) / queue.urgency_of_running(r, now_s)
                ),
            )
            released = release_rows(batch, self.tree_cache, frozenset([largest.rid]))
            self._park_rows(released, now_s)
            self._count("rows_released_for_decode_memory", len(released))
        return super().update_running_batch(batch)

    # ----------------------------------------------------------- introspection

    def get_internal_state(self, recv_req: Any) -> Any:
        """SGLang's internal state without secrets, plus Echo's under "echo"."""
        output = super().get_internal_state(recv_req)
        output.internal_state = {**redact(output.internal_state), "echo": build_status(self)}
        return output

    def set_internal_state(self, recv_req: Any) -> Any:
        """SGLang's, plus the request for a dump that POST /echo/dump sends."""
        if DUMP_KEY in recv_req.server_args:
            return SetInternalStateReqOutput(updated=self.dump_decisions() > 0)
        if DRAIN_KEY in recv_req.server_args:
            self.give_offline_back()
            return SetInternalStateReqOutput(updated=True)
        return super().set_internal_state(recv_req)

    def dump_decisions(self) -> int:
        """Write the decision log to --echo-decision-log; returns the number of decisions."""
        if not self.decision_log_path or not self.ranks.leads:
            return 0
        path = path_of_replica(Path(self.decision_log_path))
        with path.open("w", encoding="utf-8") as file:
            unix_offset_s = self.echo_wall_clock() - self.echo_clock()
            for line in self.decision_log.lines(self.echo_settings, unix_offset_s=unix_offset_s):
                file.write(line + "\n")
        return len(self.decision_log)


def impact_of(config: EchoConfig) -> ImpactAccount | None:
    """The account of what offline work costs online requests, where that is the bound."""
    if not config.impact_percent:
        return None
    ttft = config.impact_percent / 100.0
    return ImpactAccount(ImpactSettings(ttft=ttft, tpot=TPOT_IMPACT_SHARE * ttft))


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
