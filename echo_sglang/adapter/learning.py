"""How Echo learns from every iteration: its time, and the progress of online requests."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req, ScheduleBatch

from echo_sglang.adapter.clock import ClockedScheduler
from echo_sglang.adapter.demand import note_length
from echo_sglang.adapter.offline_queue import OfflineQueue
from echo_sglang.adapter.profiles import ServerProfile
from echo_sglang.adapter.ranks import Ranks
from echo_sglang.adapter.requests import EchoReq
from echo_sglang.adapter.step_timer import (
    LaunchedStep,
    MeasuredStep,
    StepTimer,
    batch_shape,
    online_shape,
)
from echo_sglang.adapter.step_tracer import StepTracer
from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.plan import StepPlan
from echo_sglang.estimate.output_length import OutputLengths
from echo_sglang.estimate.step_time import StepTimeFitter
from echo_sglang.metrics import Instruments
from echo_sglang.policy.attainment import AttainmentWindow
from echo_sglang.policy.impact import ImpactAccount
from echo_sglang.policy.impact_room import expected, step_impact
from echo_sglang.policy.offline_status import OfflineProspects, prospects_of

logger = logging.getLogger(__name__)

RELEASE_COUNTERS = ("rows_released", "rows_released_for_decode_memory", "chunks_released")

STEP_TIMES_EVERY_S = 5.0
"""How often the errors of the step-time model are summed up for metrics; it takes about 1 ms."""


class StepLearning(ClockedScheduler):
    """The part of EchoScheduler that measures. EchoScheduler sets what is declared here."""

    ranks: Ranks
    fitter: StepTimeFitter
    offline_queue: OfflineQueue
    output_lengths: OutputLengths
    server_profile: ServerProfile | None = None
    step_timer: StepTimer
    step_tracer: StepTracer | None = None
    echo_coverage: float = 0.95
    attainment: AttainmentWindow
    impact: ImpactAccount | None
    instruments: Instruments
    echo_counters: dict[str, int]
    device_is_synchronous: bool
    _plan: StepPlan
    _decided_s: float
    _device_end_s: float = 0.0
    most_preemptions: int = 0
    _step_times_told_s: float = 0.0
    _late_work: LateWork

    def run_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
        """Note what the device was given."""
        if not self.ranks.leads:
            return super().run_batch(batch, *args, **kwargs)
        shape = batch_shape(batch)
        launched_s = self.echo_clock()
        result = super().run_batch(batch, *args, **kwargs)
        tracer = self.step_tracer
        step = LaunchedStep(
            shape=shape,
            decided_s=self._decided_s,
            launched_s=launched_s,
            reason=self._plan.reason.value,
            facts=None if tracer is None else tracer.facts(batch, shape, result, self._released()),
            online=None if self.impact is None else online_shape(batch),
        )
        self.step_timer.launched(step)
        if self.device_is_synchronous:
            self._device_end_s = self.echo_clock()
            if self.enable_overlap:
                self._learn(self._device_end_s)
        return result

    def process_batch_result(self, batch: ScheduleBatch, result: Any) -> None:
        """Measure the iteration and follow the progress of online requests. Ranks that follow
        need to know neither."""
        if not self.ranks.leads:
            super().process_batch_result(batch, result)
            return
        if not self.device_is_synchronous:
            if result.copy_done is not None:
                result.copy_done.synchronize()
            self._learn(self.echo_clock())
        super().process_batch_result(batch, result)
        now_s = self.echo_clock()
        if self.device_is_synchronous and not self.enable_overlap:
            self._learn(now_s, device_end_s=self._device_end_s)
        self._follow(batch.reqs, now_s)

    def on_idle(self) -> None:
        """Let the step trace be written up to here."""
        super().on_idle()
        if self.step_tracer is not None:
            self.step_tracer.flush()

    def _learn(self, now_s: float, *, device_end_s: float | None = None) -> None:
        measured = self.step_timer.ended(now_s, device_end_s=device_end_s)
        if measured is None:
            return
        if self.step_tracer is not None:
            self.step_tracer.record(measured)
        shape = measured.launched.shape
        if shape.has_extend or shape.decode_rows:
            self._note_impact(measured)
            self._observe(shape, measured.step_s)
            self.instruments.step(shape, measured.step_s, reason=measured.launched.reason)
        if now_s - self._step_times_told_s >= STEP_TIMES_EVERY_S:
            self._step_times_told_s = now_s
            self.instruments.step_times(self.fitter.status)
            prospects = prospects_of(self.offline_queue.pool, now_s)
            self.instruments.offline(prospects)
            self._late_work.warn(prospects)

    def _note_impact(self, measured: MeasuredStep) -> None:
        """Charge the account with what the iteration took longer than its online part would
        have taken."""
        online, step_s = measured.launched.online, measured.step_s
        if self.impact is None or online is None:
            return
        shape, fitter = measured.launched.shape, self.impact.fitter
        step = step_impact(shape, online, step_s, expected(self.fitter.model, fitter.times))
        fitter.observe(shape, step_s)
        runs_ahead = self.enable_overlap and not self.device_is_synchronous
        ahead = runs_ahead and (online.has_extend or online.decode_rows > 0)
        self.impact.step(measured.ended_s, replace(step, decided_ahead=ahead))

    def _observe(self, shape: BatchShape, seconds: float) -> None:
        """Teach the model. One that fails is replaced by one that knows nothing: safe mode."""
        try:
            self.fitter.observe(shape, seconds)
        except Exception:
            logger.exception(
                "the step-time model failed at %s, %s s; learning anew", shape, seconds
            )
            self.fitter = StepTimeFitter(coverage=self.echo_coverage)
            self._count("step_time_model_failures", 1)

    def _released(self) -> int:
        """Offline rows and half-done prompts that gave way since the start."""
        return sum(self.echo_counters.get(name, 0) for name in RELEASE_COUNTERS)

    def _follow(self, reqs: list[Req], now_s: float) -> None:
        """Note how far every request of a batch has come."""
        # Most rows are offline ones that go on: there is nothing to note of them.
        noted = [r for r in reqs if r.finished_reason or getattr(r, "progress", None)]
        for req in noted:
            if isinstance(req, EchoReq):
                self._note_progress(req, now_s)

    def _note_progress(self, req: EchoReq, now_s: float) -> None:
        if req.progress is not None:
            waits = req.progress.first_token_s is None
            req.progress.note(len(req.output_ids), now_s)
            if waits and req.progress.ttft_s is not None and self.impact is not None:
                self.impact.first_token(req.progress.ttft_s)
        if not req.finished() or req.end_noted:
            return
        # Under overlap a finished request is in one more batch that was launched already.
        req.end_noted = True
        if req.progress is None and isinstance(req.finished_reason, FINISH_ABORT):
            self.offline_queue.ended(req)
            self._count("offline_aborted", 1)
            return
        note_length(self.output_lengths, req)
        if req.progress is None:
            self.offline_queue.ended(req)
            self._count("offline_finished", 1)
            self._count("offline_prompt_tokens", len(req.origin_input_ids))
            self._count("offline_output_tokens", len(req.output_ids))
            self._count("offline_cached_tokens", req.cached_tokens)
            self._count("offline_preemptions", req.retraction_count)
            self.most_preemptions = max(self.most_preemptions, req.retraction_count)
        elif req.output_ids:
            attained = self.attainment.finished(req.progress, now_s)
            self._count("online_attained" if attained else "online_missed", 1)
            self.instruments.online_finished(req.progress, attained)

    def _count(self, name: str, amount: int) -> None:
        self.echo_counters[name] = self.echo_counters.get(name, 0) + amount
        self.instruments.count(name, amount)


class LateWork:
    """Says once of a deadline that it will not be kept, and once that it will be after all."""

    def __init__(self) -> None:
        self._known: frozenset[float] = frozenset()

    def warn(self, prospects: OfflineProspects) -> None:
        """Log what changed since the last call."""
        late = {outlook.due_s: outlook for outlook in prospects.outlook if outlook.late_requests}
        for due_s, outlook in late.items():
            if due_s not in self._known:
                logger.warning(
                    "offline work due in %.0f s will be late at the pace of %s: %d of %d requests; "
                    "online requests go first all the same",
                    due_s - prospects.now_s,
                    "nothing"
                    if prospects.work_per_s is None
                    else f"{prospects.work_per_s:.0f} tokens/s",
                    outlook.late_requests,
                    outlook.requests,
                )
        still_waiting = {outlook.due_s for outlook in prospects.outlook}
        for due_s in sorted((self._known - late.keys()) & still_waiting):
            logger.info("offline work due in %.0f s will be in time", due_s - prospects.now_s)
        self._known = frozenset(late)
