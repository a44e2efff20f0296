"""What Echo can co-schedule, and what it refuses: by flags before a model is loaded, by model
before the first request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from echo_sglang.adapter.radix_cache import BACKEND, EchoRadixCache
from echo_sglang.config import EvictionPolicy
from echo_sglang.errors import IncompatibleError
from echo_sglang.sim.environment import EMULATE_ENV

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler

OFF = "drop it, or serve as stock SGLang does with --echo-off"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing that ends the start. feature: its row in `features.FEATURES`. given: the flag and
    why, for the message. holds: whether it is there."""

    feature: str
    given: str
    holds: Callable[[Any, Mapping[str, str]], bool]


def _flag(feature: str, name: str, why: str, absent: tuple[Any, ...] = (None, False)) -> Refusal:
    """A flag that is refused unless its value is one of `absent`."""
    given = f"--{name.replace('_', '-')}{why}"
    return Refusal(feature, given, lambda args, _: getattr(args, name) not in absent)


def _above_one(feature: str, name: str, why: str = "") -> Refusal:
    given = f"--{name.replace('_', '-')} above 1{why}"
    return Refusal(feature, given, lambda args, _: getattr(args, name) > 1)


FLAG_REFUSALS: tuple[Refusal, ...] = (
    _above_one("Pipeline parallel", "pp_size"),
    _flag("DP attention", "enable_dp_attention", " (its ranks share no queue and no decision)"),
    _above_one("DP attention", "attn_dp_size", " (its ranks share no queue and no decision)"),
    _above_one("Context parallel", "attn_cp_size"),
    _above_one("Context parallel", "dcp_size"),
    _flag("Context parallel", "enable_prefill_cp", ""),
    _above_one(
        "Several tokenizer workers",
        "tokenizer_worker_num",
        " (its workers load no plugin and drop the tier)",
    ),
    Refusal(
        "Rust server",
        "SGLANG_RUST_SERVER (it passes by the plugin and drops the tier)",
        lambda _, environment: environment.get("SGLANG_RUST_SERVER", "0") not in ("", "0", "false"),
    ),
    _flag("gRPC server", "smg_grpc_mode", " (it passes by the HTTP edge, which knows the tier)"),
    _flag("gRPC server", "grpc_mode", " (it passes by the HTTP edge, which knows the tier)"),
    _flag("gRPC server", "grpc_port", " (it passes by the HTTP edge, which knows the tier)"),
    _flag("Ray", "use_ray", " (its actors are not started with this configuration)"),
    _flag("Prefill/decode disaggregation", "disaggregation_mode", "", ("null",)),
    _flag("Encoder disaggregation", "encoder_only", ""),
    _flag("Encoder disaggregation", "language_only", ""),
    _flag("Speculative decoding", "speculative_algorithm", ""),
    _flag("Speculative decoding", "decoupled_spec_role", "", (None, "null")),
    _flag("PD multiplexing", "enable_pdmux", " (it has an event loop of its own)"),
    _flag("HiSparse", "enable_hisparse", " (it has a prefill-to-decode transition of its own)"),
    _flag("Two-batch overlap", "enable_two_batch_overlap", " (not tested with Echo)"),
    _flag("Two-batch overlap", "enable_single_batch_overlap", " (not tested with Echo)"),
    _flag("Elastic expert parallel", "elastic_ep_backend", " (ranks come and go)"),
    _flag("Prefill delayers", "enable_prefill_delayer", " (Echo decides when to prefill)"),
    _flag("Prefill delayers", "min_free_slots_delay", " (Echo decides when to prefill)"),
    _flag("Embedding models", "is_embedding", " (it generates nothing)"),
    _flag("Diffusion language models", "dllm_algorithm", ""),
    _flag(
        "Priority scheduling",
        "enable_priority_scheduling",
        " (the service tier takes its place)",
    ),
    Refusal(
        "Unchunked prefill",
        "--chunked-prefill-size -1 (offline prompts must be cut to fit an SLO)",
        lambda args, _: (args.chunked_prefill_size or 0) < 0,
    ),
    Refusal(
        "Emulated accelerators of several ranks",
        "--tp-size above 1 with --echo-emulate (name hardware of as many devices instead)",
        lambda args, environment: args.tp_size > 1 and EMULATE_ENV in environment,
    ),
)
"""Refused by `check_server_args`, in this order."""


def check_server_args(server_args: Any, environment: Mapping[str, str]) -> None:
    """Raise IncompatibleError naming the first flag that Echo would misbehave with."""
    _refuse_first((r.holds(server_args, environment), r.given) for r in FLAG_REFUSALS)


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
