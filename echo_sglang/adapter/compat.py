"""What Echo can co-schedule, and what it refuses: by flags before a model is loaded, by model
before the first request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from echo_sglang.errors import IncompatibleError

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler

OFF = "drop it, or serve as stock SGLang does with --echo-off"


def check_server_args(server_args: Any, environment: Mapping[str, str]) -> None:
    """Raise IncompatibleError naming the first flag that Echo would misbehave with."""
    _refuse_first(
        [
            (server_args.tp_size > 1, "--tp-size above 1 (ranks would decide alone)"),
            (server_args.pp_size > 1, "--pp-size above 1"),
            (bool(server_args.enable_dp_attention), "--enable-dp-attention"),
            (
                server_args.tokenizer_worker_num > 1,
                "--tokenizer-worker-num above 1 (its workers load no plugin and drop the tier)",
            ),
            (
                environment.get("SGLANG_RUST_SERVER", "0") not in ("", "0", "false"),
                "SGLANG_RUST_SERVER (it passes by the plugin and drops the tier)",
            ),
            (server_args.disaggregation_mode != "null", "--disaggregation-mode"),
            (server_args.speculative_algorithm is not None, "--speculative-algorithm"),
            (
                bool(server_args.enable_priority_scheduling),
                "--enable-priority-scheduling (the service tier takes its place)",
            ),
            (
                (server_args.chunked_prefill_size or 0) < 0,
                "--chunked-prefill-size -1 (offline prompts must be cut to fit an SLO)",
            ),
        ]
    )


def check_scheduler(scheduler: EchoScheduler) -> None:
    """Raise IncompatibleError naming the first property of the model that Echo cannot serve."""
    _refuse_first(
        [
            (not scheduler.is_generation, "a model that does not generate"),
            (scheduler.dllm_config is not None, "a diffusion language model"),
            (bool(scheduler.tree_cache.supports_mamba()), "a Mamba or hybrid state-space model"),
            (scheduler.chunked_prefill_size is None, "a model that SGLang prefills unchunked"),
        ]
    )


def _refuse_first(refusals: Iterable[tuple[bool, str]]) -> None:
    for holds, given in refusals:
        if holds:
            raise IncompatibleError(f"{given} is not supported by Echo; {OFF}")
