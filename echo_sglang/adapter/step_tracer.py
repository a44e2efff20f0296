"""Turns launched and measured iterations of the scheduler into records of the step trace."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.runtime_context import get_parallel

from echo_sglang.adapter.eviction_meter import EvictionMeter
from echo_sglang.adapter.identity import server_identity, server_limits
from echo_sglang.adapter.ranks import path_of_replica
from echo_sglang.adapter.step_facts import StepFacts, step_facts
from echo_sglang.adapter.step_timer import MeasuredStep
from echo_sglang.adapter.step_trace import StepTraceWriter
from echo_sglang.adapter.trace_file import RotatingFile
from echo_sglang.config import EchoConfig
from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.step_record import StepRecord, TraceHeader

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler

BYTES_PER_MB = 1_000_000


class StepTracer:
    """The step trace of one scheduler. An error in here switches the trace off, no more.

    started_s: the clock's reading that the trace counts from.
    captured_rows: sizes of the captured decode graphs, rising; empty without graphs.
    """

    def __init__(
        self,
        writer: StepTraceWriter,
        meter: EvictionMeter,
        *,
        started_s: float,
        captured_rows: Sequence[int] = (),
    ) -> None:
        self._writer = writer
        self._meter = meter
        self._started_s = started_s
        self._captured_rows = captured_rows
        self._released = 0

    def facts(
        self, batch: ScheduleBatch, shape: BatchShape, result: Any, released: int
    ) -> StepFacts | None:
        """What to remember of a batch just launched. released: rows released since the start."""
        try:
            released_rows, self._released = released - self._released, released
            return step_facts(
                batch,
                shape,
                padded_rows=self._padded_rows(shape, result),
                evicted_tokens=self._meter.take(),
                released_rows=released_rows,
            )
        except Exception as error:
            self._writer.switch_off(error)
            return None

    def record(self, measured: MeasuredStep) -> None:
        """Keep one iteration that ended."""
        launched, facts = measured.launched, measured.launched.facts
        if facts is None:
            return
        try:
            self._writer.append(
                StepRecord(
                    iteration=facts.iteration,
                    mode=facts.mode,
                    ended_s=measured.ended_s - self._started_s,
                    step_s=measured.step_s,
                    host_s=launched.launched_s - launched.decided_s,
                    device_s=measured.device_s,
                    extends=facts.extends,
                    sums=facts.sums,
                    decode_rows=launched.shape.decode_rows,
                    decode_kv_tokens=launched.shape.decode_kv_tokens,
                    padded_rows=facts.padded_rows,
                    online_rows=facts.online_rows,
                    online_tokens=facts.online_tokens,
                    evicted_tokens=facts.evicted_tokens,
                    released_rows=facts.released_rows,
                    reason=launched.reason,
                )
            )
        except Exception as error:
            self._writer.switch_off(error)

    def flush(self) -> None:
        """Have everything so far written soon; for when there is nothing else to do."""
        self._writer.flush()

    def status(self) -> dict[str, Any]:
        """For GET /echo/status."""
        return asdict(self._writer.state)

    def _padded_rows(self, shape: BatchShape, result: Any) -> int | None:
        if shape.has_extend or not result.can_run_cuda_graph:
            return None
        place = bisect_left(self._captured_rows, shape.decode_rows)
        return self._captured_rows[place] if place < len(self._captured_rows) else None


def make_step_tracer(scheduler: EchoScheduler, config: EchoConfig) -> StepTracer | None:
    """The tracer that --echo-trace asks for, None without it.

    One rank of each engine writes, the one that also publishes forward pass metrics; of
    several data parallel engines each to a file of its own, PATH.dp0, PATH.dp1, ...
    """
    parallel = get_parallel()
    writes = parallel.attn_tp_rank == 0 and parallel.pp_rank == parallel.pp_size - 1
    if not config.trace or not writes:
        return None
    header = TraceHeader(
        identity=asdict(server_identity(scheduler)),
        limits=server_limits(scheduler),
        started_unix_s=scheduler.echo_wall_clock(),
    )
    file = RotatingFile(
        path_of_replica(Path(config.trace)),
        lambda: json.dumps(header.to_json_values()),
        max_bytes=int(config.trace_mb * BYTES_PER_MB),
        max_files=config.trace_files,
    )
    return StepTracer(
        StepTraceWriter(file),
        EvictionMeter(scheduler.tree_cache),
        started_s=scheduler.echo_clock(),
        captured_rows=sorted(scheduler.tp_worker.get_decode_cuda_graph_bs()),
    )
