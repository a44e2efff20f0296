"""How Echo learns from every iteration: its time, and the progress of online requests."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

from echo_sglang.adapter.clock import ClockedScheduler
from echo_sglang.adapter.demand import note_length
from echo_sglang.adapter.requests import EchoReq
from echo_sglang.adapter.step_timer import StepTimer, batch_shape
from echo_sglang.domain.plan import StepPlan
from echo_sglang.estimate.output_length import OutputLengths
from echo_sglang.estimate.step_time import StepTimeFitter
from echo_sglang.metrics import Instruments
from echo_sglang.policy.attainment import AttainmentWindow


class StepLearning(ClockedScheduler):
    """The part of EchoScheduler that measures. EchoScheduler sets what is declared here."""

    fitter: StepTimeFitter
    output_lengths: OutputLengths
    step_timer: StepTimer
    attainment: AttainmentWindow
    instruments: Instruments
    echo_counters: dict[str, int]
    device_is_synchronous: bool
    _plan: StepPlan
    _decided_s: float

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
        note_length(self.output_lengths, req)
        if req.progress is None:
            self._count("offline_finished", 1)
            self._count("offline_prompt_tokens", len(req.origin_input_ids))
            self._count("offline_output_tokens", len(req.output_ids))
            self._count("offline_cached_tokens", req.cached_tokens)
        elif req.output_ids:
            attained = self.attainment.finished(req.progress, now_s)
            self._count("online_attained" if attained else "online_missed", 1)
            self.instruments.online_finished(req.progress, attained)

    def _count(self, name: str, amount: int) -> None:
        self.echo_counters[name] = self.echo_counters.get(name, 0) + amount
        self.instruments.count(name, amount)
