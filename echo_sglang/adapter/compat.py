"""What Echo can co-schedule, and what it refuses: by flags before a model is loaded, by model
before the first request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from echo_sglang.adapter.radix_cache import BACKEND, EchoRadixCache
from echo_sglang.config import EvictionPolicy
from echo_sglang.errors import IncompatibleError

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler

OFF = "drop it, or serve as stock SGLang does with --echo-off"


def check_server_args(server_args: Any, environment: Mapping[str, str]) -> None:
    """Raise IncompatibleError naming the first flag that Echo would misbehave with."""
    _refuse_first(
        [
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


def check_eviction(
    server_args: Any, policy: EvictionPolicy, environment: Mapping[str, str]
) -> None:
    """Raise IncompatibleError naming the first flag that chooses another cache than Echo's.

    Nothing is refused for EvictionPolicy.LRU, which is SGLang's own cache.
    """
    if policy is EvictionPolicy.LRU or server_args.disable_radix_cache:
        return
    core = environment.get("SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND", BACKEND)
    refusals = [
        (server_args.radix_cache_backend != BACKEND, "--radix-cache-backend"),
        (server_args.radix_eviction_policy != "lru", "--radix-eviction-policy"),
        (core != BACKEND, f"SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND={core}"),
        (bool(server_args.enable_hierarchical_cache), "--enable-hierarchical-cache"),
        (bool(server_args.enable_session_radix_cache), "--enable-session-radix-cache"),
        (bool(server_args.enable_lmcache), "--enable-lmcache"),
        (bool(server_args.enable_flexkv), "--enable-flexkv"),
        (
            bool(server_args.enable_unified_cache_external_linker),
            "--enable-unified-cache-external-linker",
        ),
    ]
    for holds, given in refusals:
        if holds:
            raise IncompatibleError(
                f"{given} is not supported with --echo-eviction {policy.value}, which ranks KV "
                f"on the device in Echo's own radix cache; drop it, or add --echo-eviction "
                f"{EvictionPolicy.LRU.value}, which serves with SGLang's cache"
            )


def check_scheduler(scheduler: EchoScheduler, policy: EvictionPolicy) -> None:
    """Raise IncompatibleError naming the first property of the model that Echo cannot serve."""
    _refuse_first(
        [
            (not scheduler.is_generation, "a model that does not generate"),
            (scheduler.dllm_config is not None, "a diffusion language model"),
            (bool(scheduler.tree_cache.supports_mamba()), "a Mamba or hybrid state-space model"),
            (
                policy is not EvictionPolicy.LRU
                and not scheduler.server_args.disable_radix_cache
                and not isinstance(scheduler.tree_cache, EchoRadixCache),
                f"--echo-eviction {policy.value} on a {type(scheduler.tree_cache).__name__}",
            ),
            (scheduler.chunked_prefill_size is None, "a model that SGLang prefills unchunked"),
        ]
    )


def _refuse_first(refusals: Iterable[tuple[bool, str]]) -> None:
    for holds, given in refusals:
        if holds:
            raise IncompatibleError(f"{given} is not supported by Echo; {OFF}")
