"""SGLang's scheduler, stock or Echo, on virtual time.

`emulated(base)` puts `Emulation` in front of a scheduler class. It replaces what touches the
outside (clock, model worker, sockets) and leaves every decision, the cache and the allocators
as they are; `WithoutForwardPasses` drops what is prepared for a pass that is not computed.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sglang.srt.environ import EnvField
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels

from echo_sglang.sim.answers import Answers
from echo_sglang.sim.clock import START_S, TimeModule, VirtualClock
from echo_sglang.sim.device import Device
from echo_sglang.sim.errors import EmulationError
from echo_sglang.sim.intake import tokenized
from echo_sglang.sim.records import RequestRecord, StepLog
from echo_sglang.sim.streamer import EmulatedSender, EmulatedStreamer
from echo_sglang.sim.uncomputed import WithoutForwardPasses
from echo_sglang.sim.worker import EmulatedResult, EmulatedWorker
from echo_sglang.sim.workload import Workload

if TYPE_CHECKING:
    from sglang.srt.managers.scheduler import Scheduler

STALL_STEP_S = 1e-3
MAX_STALL_S = 120.0


@dataclass(slots=True, kw_only=True)
class Emulator:
    """What one emulated run shares between scheduler, worker and caller.

    window_s: offline work counts and new requests come until then; afterwards the run goes
    on only until the online requests that came are answered, `grace_s` at most.
    host_s: what the host is charged per iteration; None charges what it really took.
    uses_priority: stock SGLang is told the class as a priority.
    """

    workload: Workload
    device: Device
    window_s: float
    grace_s: float = 60.0
    host_s: float | None = 0.0
    uses_priority: bool = False
    computes: bool = False
    clock: VirtualClock = field(default_factory=VirtualClock)
    answers: Answers = field(default_factory=Answers)
    steps: StepLog = field(default_factory=StepLog)
    records: dict[str, RequestRecord] = field(default_factory=dict)
    decide_s: list[float] = field(default_factory=list)
    online_waiting: int = 0

    def received(self, rid: str, tokens: int) -> RequestRecord:
        """The client of `rid` has `tokens` by now, all in all."""
        record = self.records[rid]
        record.receive(tokens, self.clock.elapsed_s)
        return record

    def finished(self, rid: str, reason: str) -> None:
        """The client of `rid` is told that there will be no more."""
        record = self.records[rid]
        if record.finish is not None:
            raise EmulationError(f"request {rid} was answered twice: {record.finish}, {reason}")
        record.finish, record.done_s = reason, self.clock.elapsed_s
        if not record.request.is_offline:
            self.online_waiting -= 1

    def check_conservation(self) -> None:
        """Raise EmulationError unless every request was answered, and whole if not aborted."""
        for rid, record in self.records.items():
            if record.finish is None:
                raise EmulationError(f"request {rid} was never answered")
            wanted = record.request.output_tokens
            if record.finish != "abort" and record.received != wanted:
                raise EmulationError(
                    f"request {rid} received {record.received} tokens instead of {wanted}"
                )


class Emulation:
    """Overrides of SGLang's Scheduler; see `emulated`. `emulator` is set on the class made."""

    emulator: Emulator

    # ------------------------------------------------------------------ start

    def init_tp_model_worker(self) -> None:
        """The emulated accelerator in place of SGLang's worker."""
        self.tp_worker = EmulatedWorker(
            server_args=self.server_args, gpu_id=0, nccl_port=self.nccl_port
        )
        emulator = self.emulator
        self.tp_worker.emulate(
            emulator.clock, emulator.device, emulator.answers, computes=emulator.computes
        )

    def init_ipc_channels(self, port_args: Any) -> None:
        """No sockets."""
        sender = EmulatedSender(self.emulator)
        self.ipc_channels = SchedulerIpcChannels(
            recv_from_tokenizer=None,
            recv_from_rpc=None,
            send_to_tokenizer=sender,
            send_to_detokenizer=sender,
            send_metrics_from_scheduler=None,
        )
        self.recv_from_tokenizer = None
        self.load_snapshot_writer = None

    def get_output_streamer_class(self) -> type[EmulatedStreamer]:
        """Nobody reads messages here."""
        return type("Streamer", (EmulatedStreamer,), {"emulator": self.emulator})

    def init_schedule_policy(self) -> None:
        """SGLang sees the CPU that holds its tensors; the emulated device runs ahead."""
        super().init_schedule_policy()
        self.device_is_synchronous = False
        self._arrivals = deque(self.emulator.workload.requests)
        self._stalled_since_s: float | None = None
        self._host_since_s = time.perf_counter()
        self._closing = False

    # ------------------------------------------------------------------ clock

    def echo_clock(self) -> float:
        """Echo's clock is the host's virtual one."""
        return self.emulator.clock.now_s

    def echo_wall_clock(self) -> float:
        """Virtual time is the only time."""
        return self.emulator.clock.now_s

    def arrived_s(self, req: Req) -> float:
        """On the virtual clock, of requests of the workload."""
        record = self.emulator.records.get(req.rid)
        return self.echo_clock() if record is None else record.request.arrival_s + START_S

    def wait_for_device(self, result: EmulatedResult) -> None:
        """The host waits for one iteration."""
        self.emulator.clock.wait_until(result.end_s)

    # --------------------------------------------------------------- the loop

    def run_event_loop(self) -> None:
        """SGLang's, with nobody to read a log, in an environment that does not change."""
        self.metrics_reporter.is_stats_logging_rank = False
        look_up = EnvField.get
        EnvField.get = functools.cache(look_up)
        try:
            super().run_event_loop()
        finally:
            EnvField.get = look_up

    def ingest_requests(self, stop_at_pause: bool = False) -> list[Any]:
        """Take in what has arrived by now; begin to close when the window is over."""
        if hasattr(self, "let_offline_iteration_end"):
            self.let_offline_iteration_end()
        emulator = self.emulator
        due: list[Any] = []
        now_s = emulator.clock.elapsed_s
        while self._arrivals and self._arrivals[0].arrival_s + START_S <= emulator.clock.now_s:
            request = self._arrivals.popleft()
            if request.arrival_s >= emulator.window_s:
                self._arrivals.clear()
                break
            due.append(tokenized(request, uses_priority=emulator.uses_priority))
            emulator.records[request.rid] = RequestRecord(request)
            emulator.answers.expect(request.rid, request.output_tokens)
            emulator.online_waiting += not request.is_offline
        if now_s >= emulator.window_s and not self._closing:
            due.extend(self._closing_messages(now_s))
        self.process_input_requests(due)
        return due

    def get_next_batch_to_run(self, *args: Any, **kwargs: Any) -> Any:
        """SGLang's decision, timed."""
        started_s = time.perf_counter()
        plan = super().get_next_batch_to_run(*args, **kwargs)
        self.emulator.decide_s.append(time.perf_counter() - started_s)
        return plan

    def run_batch(self, batch: ScheduleBatch, *args: Any, **kwargs: Any) -> Any:
        """Charge the host for preparing this batch, then launch it."""
        emulator = self.emulator
        self._stalled_since_s = None
        self._charge_host()
        before_s = max(emulator.clock.device_free_s, emulator.clock.now_s)
        result = super().run_batch(batch, *args, **kwargs)
        emulator.steps.add(result.shape, result.end_s - before_s, result.rows)
        records = emulator.records
        for rid, context_tokens, computed_tokens in zip(*result.rows, strict=True):
            records[rid].compute(context_tokens, computed_tokens)
        return result

    def _copy_result_to_cpu(self, *_: Any) -> None:
        """It is there."""

    def process_batch_result(self, batch: ScheduleBatch, result: EmulatedResult) -> None:
        """Wait for the device, then go on as SGLang does."""
        self.emulator.clock.wait_until(result.end_s)
        super().process_batch_result(batch, result)

    def on_idle(self) -> None:
        """SGLang's checks; then sleep until the next arrival, or end the run."""
        super().on_idle()
        emulator = self.emulator
        clock = emulator.clock
        idle = self.is_fully_idle()
        if self._arrivals and not (self._arrivals[0].arrival_s >= emulator.window_s):
            next_s = self._arrivals[0].arrival_s + START_S
            clock.wait_until(next_s if idle else min(next_s, clock.now_s + STALL_STEP_S))
        elif idle:
            self.gracefully_exit = True
        else:
            clock.charge(STALL_STEP_S)
        if not idle:
            self._check_stall(clock.now_s)

    def _closing_messages(self, now_s: float) -> list[Any]:
        emulator = self.emulator
        if emulator.online_waiting and now_s < emulator.window_s + emulator.grace_s:
            return []
        self._closing = True
        self._arrivals.clear()
        for req in self._unfinished():
            emulator.records[req.rid].preemptions = req.retraction_count
        return [AbortReq(rid="", abort_all=True)]

    def _unfinished(self) -> list[Req]:
        """What waits or runs when the window is over, if it was ever built."""
        pool = getattr(self, "offline_queue", None)
        parked = [] if pool is None else list(pool.built_reqs())
        return [*self.waiting_queue, *self.running_batch.reqs, *parked]

    def _charge_host(self) -> None:
        emulator = self.emulator
        now_s = time.perf_counter()
        worked_s, self._host_since_s = now_s - self._host_since_s, now_s
        emulator.clock.charge(worked_s if emulator.host_s is None else emulator.host_s)

    def _check_stall(self, now_s: float) -> None:
        if self._stalled_since_s is None:
            self._stalled_since_s = now_s
        if now_s - self._stalled_since_s > MAX_STALL_S:
            raise EmulationError(
                f"nothing has run for {MAX_STALL_S:g} virtual seconds although requests wait "
                f"({len(self.waiting_queue)} in SGLang's queue); the scheduler is stuck"
            )


def emulated(base: type[Scheduler], emulator: Emulator) -> type[Scheduler]:
    """A scheduler class like `base` that runs `emulator`'s workload on virtual time."""
    from sglang.srt.observability import req_time_stats

    req_time_stats.time = TimeModule(emulator.clock)
    bases = (Emulation, base) if emulator.computes else (Emulation, WithoutForwardPasses, base)
    return type(f"Emulated{base.__name__}", bases, {"emulator": emulator})
