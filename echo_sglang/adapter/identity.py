"""Which server this is, in what its iteration times depend on, and how large it is."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang.srt.arg_groups.overrides import resolution_result

from echo_sglang.estimate.profile import ProfileIdentity

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler

TIMED_FLAGS = (
    "attention_backend",
    "decode_attention_backend",
    "prefill_attention_backend",
    "quantization",
    "kv_cache_dtype",
    "page_size",
    "disable_overlap_schedule",
    "disable_decode_cuda_graph",
    "disable_prefill_cuda_graph",
    "enable_torch_compile",
    "moe_runner_backend",
)
"""Flags of SGLang (fields of its ServerArgs) that change how long the same batch takes."""


def server_identity(scheduler: EchoScheduler) -> ProfileIdentity:
    """What a profile of this server holds for."""
    server_args = scheduler.server_args
    values = {name: resolution_result(server_args, name, None) for name in TIMED_FLAGS}
    return ProfileIdentity(
        hardware=hardware_name(str(scheduler.device)),
        model=model_name(scheduler.model_config),
        sglang_version=metadata.version("sglang"),
        dtype=str(scheduler.model_config.dtype).removeprefix("torch."),
        tp_size=int(server_args.tp_size),
        flags=tuple(f"{name}={value}" for name, value in values.items() if value is not None),
    )


def server_limits(scheduler: EchoScheduler) -> dict[str, int]:
    """The largest values that one iteration of this server can have, in tokens and rows."""
    return {
        "chunk_tokens": int(scheduler.chunked_prefill_size),
        "rows": int(scheduler.max_running_requests),
        "kv_tokens": int(scheduler.max_total_num_tokens),
        "context_tokens": int(scheduler.model_config.context_len),
        "vocabulary": int(scheduler.model_config.vocab_size),
    }


def hardware_name(device: str) -> str:
    """The accelerator's name; for a CPU its model and the cores this process may use."""
    if device == "cpu":
        return f"{cpu_name(Path('/proc/cpuinfo'))}, {len(os.sched_getaffinity(0))} cores"
    import torch

    return str(torch.get_device_module(device).get_device_name())


def cpu_name(cpuinfo: Path) -> str:
    """The model that Linux names in /proc/cpuinfo, else the machine's architecture."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def model_name(model_config: Any) -> str:
    """A hub name as it is; of a folder the last part, links followed: the same anywhere."""
    path = Path(model_config.model_path)
    return path.resolve().name if path.is_dir() else str(model_config.model_path)
