"""What Echo can co-schedule, and what it refuses at start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.srt.runtime_context import get_disagg, get_parallel

from echo_sglang.errors import IncompatibleError

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler

OFF = "drop it, or serve as stock SGLang does with --echo-off"


def check_scheduler(scheduler: EchoScheduler) -> None:
    """Raise IncompatibleError naming the first feature that Echo would misbehave with."""
    for holds, given in _refused(scheduler):
        if holds:
            raise IncompatibleError(f"{given} is not supported by Echo; {OFF}")


def _refused(scheduler: Any) -> list[tuple[bool, str]]:
    parallel = get_parallel()
    chunk = scheduler.chunked_prefill_size
    return [
        (not scheduler.is_generation, "a model that does not generate"),
        (parallel.tp_size > 1, f"--tp-size {parallel.tp_size} (ranks would decide alone)"),
        (parallel.pp_size > 1, f"--pp-size {parallel.pp_size}"),
        (get_disagg().disaggregation_mode != "null", "prefill/decode disaggregation"),
        (not scheduler.spec_algorithm.is_none(), "speculative decoding"),
        (getattr(scheduler, "dllm_config", None) is not None, "a diffusion language model"),
        (scheduler.enable_priority_scheduling, "--enable-priority-scheduling"),
        (bool(scheduler.tree_cache.supports_mamba()), "a Mamba or hybrid state-space model"),
        (chunk is None, "--chunked-prefill-size -1 (offline prompts must be cut to fit an SLO)"),
    ]
