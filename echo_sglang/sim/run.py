"""Runs one emulated server to its end, in this process."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echo_sglang.config import CONFIG_ENV, EvictionPolicy
from echo_sglang.sim.catalog import device_from
from echo_sglang.sim.device import Device, RooflineDevice
from echo_sglang.sim.environment import prepare_environment
from echo_sglang.sim.limit import PhysicalLimit
from echo_sglang.sim.metrics import Slo, Summary, done_within, percentile, summarise_requests
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.spec import RunSpec
from echo_sglang.sim.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What one emulated run left behind. cpu_s: real CPU seconds of its event loop."""

    emulator: Any
    cpu_s: float
    counters: Mapping[str, int]

    def summary(self, slo: Slo) -> Summary:
        """The run in figures."""
        emulator = self.emulator
        requests = summarise_requests(emulator.records.values(), slo, emulator.window_s)
        limit = None
        if isinstance(emulator.device, RooflineDevice):
            limit = PhysicalLimit.of(emulator.workload.requests, emulator.device, emulator.window_s)
        share = None
        if limit is not None:
            done = done_within(emulator.records.values(), emulator.window_s)
            rate = requests["offline_per_s"]
            share = limit.share(done, len(done) / rate) if rate else 0.0
        decide_ms = [1e3 * seconds for seconds in emulator.decide_s]
        return Summary(
            **requests,
            limit_per_s=None if limit is None else limit.per_s,
            share_of_limit=share,
            iterations=emulator.steps.iterations,
            device_busy=emulator.steps.device_s / max(emulator.clock.elapsed_s, 1e-9),
            decide_p50_ms=percentile(decide_ms, 50) or 0.0,
            decide_p99_ms=percentile(decide_ms, 99) or 0.0,
            virtual_per_cpu_s=emulator.clock.elapsed_s / max(self.cpu_s, 1e-9),
            batches_sha1=emulator.steps.sha1,
        )


def run(
    workload: Workload,
    device: Device,
    setup: ServerSetup,
    *,
    window_s: float,
    grace_s: float = 60.0,
    computes: bool = False,
) -> RunResult:
    """Run `workload` on the emulated server. Once per process: SGLang's state is global.

    computes: see `EmulatedWorker`. Raises EmulationError if a request was lost or answered
    twice, AssertionError (from SGLang's own checks) if KV was.
    """
    prepare_environment()
    _configure_echo(setup)
    import sglang.srt.utils  # noqa: F401  (must come before sglang.srt.platforms)
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import PortArgs

    from echo_sglang.sim.scheduler import Emulator, emulated
    from echo_sglang.sim.tiny_model import write_tiny_model

    base = Scheduler
    if setup.echo is not None:
        from echo_sglang.adapter.scheduler import EchoScheduler

        base = EchoScheduler
    elif setup.bound_s is not None:
        from echo_sglang.sim.bounded import bounded_by

        base = bounded_by(setup.bound_s)
    load_plugins()
    emulator = Emulator(
        workload=workload,
        device=device,
        window_s=window_s,
        grace_s=grace_s,
        host_s=setup.host_s,
        uses_priority=setup.priority,
        computes=computes,
    )
    with tempfile.TemporaryDirectory() as folder:
        server_args = _server_args(setup, write_tiny_model(Path(folder)))
        publish(
            server_args, role="scheduler", ranks=SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0)
        )
        scheduler = emulated(base, emulator)(server_args, PortArgs.init_new(server_args))
    # Requests and tokens live as long as the run: looking at them again and again is waste.
    gc.freeze()
    started_s = time.process_time()
    scheduler.run_event_loop()
    cpu_s = time.process_time() - started_s
    emulator.check_conservation()
    return RunResult(
        emulator=emulator, cpu_s=cpu_s, counters=dict(getattr(scheduler, "echo_counters", {}))
    )


def execute(spec: RunSpec) -> dict[str, Any]:
    """Run `spec` here; returns JSON values: the spec, the summary, Echo's counters."""
    result = run(
        spec.workload(),
        device_from(spec.device),
        spec.setup,
        window_s=spec.window_s,
        grace_s=spec.grace_s,
        computes=spec.computes,
    )
    return {
        "spec": spec.to_json(),
        "digest": spec.digest,
        "summary": result.summary(spec.slo).to_json(),
        "counters": dict(result.counters),
    }


def _configure_echo(setup: ServerSetup) -> None:
    os.environ.pop(CONFIG_ENV, None)
    if setup.echo is not None:
        os.environ[CONFIG_ENV] = setup.echo.to_json()


def _server_args(setup: ServerSetup, model: Path) -> Any:
    from sglang.srt.server_args import ServerArgs

    arguments = {
        "model_path": str(model),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "device": "cpu",
        "dtype": "bfloat16",
        "max_total_tokens": setup.kv_tokens,
        "context_length": setup.context_tokens,
        "max_running_requests": setup.max_running,
        "chunked_prefill_size": setup.chunk_tokens,
        "max_prefill_tokens": max(setup.chunk_tokens, 16_384),
        "enable_mixed_chunk": setup.mixed,
        "disable_overlap_schedule": not setup.overlap,
        "enable_priority_scheduling": setup.priority,
        "log_level": "error",
        **_cache_arguments(setup),
        **setup.server_args,
    }
    return ServerArgs(**arguments)


def _cache_arguments(setup: ServerSetup) -> dict[str, Any]:
    """Echo's KV cache, where its configuration asks for it, as the launcher chooses it."""
    if setup.echo is None or setup.echo.eviction == EvictionPolicy.LRU:
        return {}
    return {"radix_cache_backend": "echo"}
