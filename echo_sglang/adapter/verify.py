"""Refuses to serve on an SGLang that is not the one this package was made for.

SGLang only logs a plugin that fails, so everything Echo relies on is looked up before a
model is loaded. CONTRACT is the whole list; a contract test checks it too.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from echo_sglang.adapter.patch_series import PATCHED_FILES, SERIES_ID, SUPPORTED_SGLANG
from echo_sglang.errors import IncompatibleError

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"

TREE = "sglang.srt.mem_cache.unified_cache.unified_tree"
FULL = "sglang.srt.mem_cache.unified_cache.components.full.FullComponent"
CACHE = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache"

CONTRACT: dict[str, tuple[str, ...]] = {
    f"{SCHEDULER}.has_prefill_candidates": ("self",),
    f"{SCHEDULER}.prefill_candidates": ("self",),
    f"{SCHEDULER}.init_schedule_policy": ("self",),
    f"{SCHEDULER}.get_prefill_adder_class": ("self",),
    f"{SCHEDULER}.init_grammar_manager": ("self",),
    f"{SCHEDULER}.ingest_requests": ("self", "stop_at_pause"),
    f"{SCHEDULER}.process_input_requests": ("self", "recv_reqs"),
    f"{SCHEDULER}.handle_generate_request": ("self", "recv_req", "mm_input_error"),
    f"{SCHEDULER}._release_aborted_request": ("self", "req"),
    f"{SCHEDULER}.abort_request": ("self", "recv_req"),
    f"{SCHEDULER}.is_fully_idle": ("self", "for_health_check", "ignore_waiting"),
    f"{SCHEDULER}.record_weight_version_change": ("self", "new_version"),
    f"{SCHEDULER}.update_running_batch": ("self", "batch"),
    f"{SCHEDULER}.run_batch": ("self", "batch"),
    f"{SCHEDULER}.process_batch_result": ("self", "batch", "result"),
    f"{SCHEDULER}.on_idle": ("self",),
    f"{SCHEDULER}.get_internal_state": ("self", "recv_req"),
    f"{SCHEDULER}.set_internal_state": ("self", "recv_req"),
    f"{SCHEDULER}.get_num_allocatable_reqs": ("self", "running_bs", "running_batch"),
    f"{SCHEDULER}.send_abort_output": ("self", "abort_req", "req"),
    f"{SCHEDULER}._create_generation_req": ("self", "recv_req"),
    f"{SCHEDULER}._add_request_to_queue": ("self", "req", "is_retracted"),
    f"{SCHEDULER}._should_defer_prefill": ("self", "running_batch"),
    f"{SCHEDULER}._get_new_batch_prefill_raw": ("self", "running_batch"),
    "sglang.srt.managers.schedule_policy.PrefillAdder.add_one_req": (
        "self",
        "req",
        "has_chunked_req",
        "truncation_align_size",
    ),
    "sglang.srt.managers.schedule_policy.PrefillAdder.add_chunked_req": ("self", "req"),
    "sglang.srt.arg_groups.overrides.resolution_result": ("server_args", "field", "default"),
    "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.evict": ("self", "params"),
    "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.evict_for_alloc": ("self", "params"),
    "sglang.srt.mem_cache.common.release_kv_cache": ("req", "tree_cache", "checkpoint"),
    "sglang.srt.managers.schedule_batch.Req.reset_for_retract": ("self",),
    "sglang.srt.managers.schedule_batch.ScheduleBatch.filter_batch": ("self", "keep_indices"),
    "sglang.srt.managers.schedule_batch.ScheduleBatch.check_decode_mem": ("self",),
    "sglang.srt.mem_cache.rust_tree_core.adapter.RustUnifiedTreeCore.match_full_device_prefix": (
        "self",
        "key",
    ),
    "sglang.srt.mem_cache.radix_cache.RadixKey.match_at": ("self", "other", "offset", "page_size"),
    "sglang.srt.mem_cache.radix_cache.RadixKey.child_key_at": ("self", "offset", "page_size"),
    "sglang.srt.mem_cache.registry.register_radix_cache_backend": ("name", "factory"),
    "sglang.srt.mem_cache.registry.create_unified_radix_cache": ("ctx", "cache_class"),
    "sglang.srt.mem_cache.unified_cache.tree_core_registry.register_tree_core_backend": (
        "name",
        "factory",
    ),
    f"{TREE}_core.UnifiedTreeCore.reset": ("self",),
    f"{TREE}_core.UnifiedTreeCore._new_node": ("self", "priority"),
    f"{TREE}_core.UnifiedTreeCore._add_new_node": ("self", "parent", "key", "value"),
    f"{TREE}_core.UnifiedTreeCore.begin_insert": ("self", "params"),
    f"{TREE}_core.UnifiedTreeCore._inc_hit_count_and_check": ("self", "node"),
    f"{TREE}_core.UnifiedTreeCore._update_evictable_leaf_sets": ("self", "node"),
    f"{TREE}_core.UnifiedTreeCore._split_node": ("self", "key", "child", "split_len"),
    f"{TREE}_core.UnifiedTreeCore._advance_insert": ("self",),
    f"{TREE}_core.UnifiedTreeCore._unregister_node": ("self", "node"),
    f"{TREE}_core._InsertWalkState": ("node", "key", "value", "params", "total_prefix_length"),
    "sglang.srt.mem_cache.base_prefix_cache.InsertParams": ("key", "value", "prev_prefix_len"),
    f"{TREE}_core.UnifiedTreeCore._remove_leaf_from_parent": ("self", "node"),
    f"{TREE}_core.UnifiedTreeCore.match_full_device_prefix": ("self", "key"),
    f"{FULL}._evict_device_start": ("self", "request_cnt"),
    f"{FULL}._evict_device_next_node": ("self", "tracker"),
    f"{FULL}._evict_device_end": ("self",),
    f"{FULL}.acquire_component_lock": ("self", "node"),
    f"{FULL}.release_component_lock": ("self", "node"),
    f"{CACHE}.evict_for_alloc": ("self", "params"),
    f"{CACHE}.insert": ("self", "params"),
    f"{CACHE}.checkpoint_into_tree": ("self", "req", "up_to"),
    "sglang.srt.constrained.grammar_manager.GrammarManager.get_ready_grammar_requests": ("self",),
    "sglang.srt.managers.tokenizer_manager.SignalHandler.sigterm_handler": ("self",),
    "sglang.srt.managers.tokenizer_manager.SignalHandler.running_phase_sigquit_handler": ("self",),
    "sglang.srt.utils.watchdog.SubprocessWatchdog": ("processes",),
    "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request": ("self", "obj"),
    "sglang.srt.managers.tokenizer_manager.TokenizerManager.set_internal_state": ("self", "obj"),
    "sglang.srt.managers.tokenizer_manager.TokenizerManager.get_internal_state": ("self",),
    "sglang.srt.utils.auth.decide_request_auth": ("authorization_header",),
    "sglang.srt.utils.common.build_server_info": ("server_args", "scheduler_info"),
}
"""Upstream callables that Echo overrides or calls, with the parameters it relies on."""


def verify_install() -> None:
    """Raise IncompatibleError, saying what to run, unless version, patches and names fit."""
    _verify_version()
    _verify_patches()
    missing = broken_contract()
    if missing:
        raise IncompatibleError(
            "this SGLang lacks what Echo relies on: "
            + "; ".join(missing)
            + f". Install sglang=={SUPPORTED_SGLANG} and run scripts/apply_patches.py apply"
        )


def broken_contract() -> list[str]:
    """Every entry of CONTRACT that the installed SGLang does not fulfil, in words."""
    problems = []
    for name, parameters in CONTRACT.items():
        try:
            have = inspect.signature(_resolve(name)).parameters
        except (ImportError, AttributeError):
            problems.append(f"{name} does not exist")
            continue
        absent = [parameter for parameter in parameters if parameter not in have]
        if absent:
            problems.append(f"{name} has no parameter {', '.join(absent)}")
    return problems


def verify_registered() -> None:
    """Raise IncompatibleError unless SGLang's plugin loader put Echo's scheduler in place."""
    from echo_sglang.adapter.scheduler import EchoScheduler

    if _resolve(SCHEDULER) is not EchoScheduler:
        raise IncompatibleError(
            "SGLang did not load the plugin 'echo'. Install echo_sglang into this environment "
            "(pip install -e .), and if SGLANG_PLUGINS or SGLANG_PLATFORM is set, let the "
            "first name 'echo' and do not let the second name another package's platform"
        )


def verify_hooked(targets: Iterable[str]) -> None:
    """Raise IncompatibleError unless every hook is in place; SGLang only logs one that is not."""
    missing = [name for name in targets if not hasattr(_resolve(name), "__wrapped__")]
    if missing:
        raise IncompatibleError(
            f"SGLang did not put the hooks on {', '.join(missing)} in place; its log says why. "
            f"Install sglang=={SUPPORTED_SGLANG} and run scripts/apply_patches.py apply"
        )


def _verify_version() -> None:
    try:
        version = metadata.version("sglang")
    except metadata.PackageNotFoundError:
        version = "none"
    if version != SUPPORTED_SGLANG:
        raise IncompatibleError(
            f"sglang {version} is installed, {SUPPORTED_SGLANG} is needed: "
            f"pip install sglang=={SUPPORTED_SGLANG}"
        )


def _verify_patches() -> None:
    import hashlib

    spec = importlib.util.find_spec("sglang")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent.parent
    for name, digest in PATCHED_FILES.items():
        path = root / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "absent"
        if found != digest:
            raise IncompatibleError(
                f"{name} of the installed SGLang does not carry patch series {SERIES_ID}: run "
                "scripts/apply_patches.py status, then scripts/apply_patches.py apply"
            )


def _resolve(name: str) -> Any:
    """Import the longest module prefix of a dotted name, then walk attributes."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise ImportError(name)
