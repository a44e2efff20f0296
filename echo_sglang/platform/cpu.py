"""Out-of-tree SGLang platform for a plain CPU, with an attention backend made for chunks.

SGLang finds `activate` through the entry-point group `sglang.srt.platforms`. The platform is
chosen by name, `SGLANG_PLATFORM=echo_cpu`; an environment that merely has it installed keeps
the platform SGLang would have picked without it.
"""

from __future__ import annotations

import logging
import os
import platform
from typing import TYPE_CHECKING, Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from echo_sglang.platform import device_timer
from echo_sglang.platform.bf16 import multiplies_bf16
from echo_sglang.platform.threads import limit_spinning, share_cores

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
    from sglang.srt.model_executor.model_runner import ModelRunner
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)

PLATFORM_NAME = "echo_cpu"
ATTENTION_BACKEND = "echo_cpu"


def activate() -> str | None:
    """Return the platform's class name when `SGLANG_PLATFORM` asks for it, else None.

    SGLang calls this for every installed platform while it discovers one; None means "not me".
    Called first in the launcher, so its environment reaches the worker processes.
    """
    if os.environ.get("SGLANG_PLATFORM") != PLATFORM_NAME:
        return None
    limit_spinning(os.environ)
    allow_attention_backend()
    return f"{EchoCpuPlatform.__module__}.{EchoCpuPlatform.__qualname__}"


def allow_attention_backend() -> None:
    """Make `--attention-backend echo_cpu` a valid choice. Idempotent."""
    from sglang.srt.arg_groups.choices import (
        ATTENTION_BACKEND_CHOICES,
        add_attention_backend_choices,
    )

    if ATTENTION_BACKEND not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices([ATTENTION_BACKEND])


def _create_attention_backend(runner: ModelRunner) -> AttentionBackend:
    from echo_sglang.platform.cpu_attention import CpuAttentionBackend

    return CpuAttentionBackend(runner)


class EchoCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """Any x86 or ARM CPU on the native (plain torch) operator paths, collectives over gloo."""

    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities()

    def get_device(self, device_id: int = 0) -> str:
        """Return "cpu": SGLang splits its `--device` default as a string."""
        return self.device_type

    def apply_server_args_defaults(self, server_args: ServerArgs) -> None:
        """Pick this platform's attention backend and a type of weights that the CPU can multiply
        where the user named none, and give several ranks cores.

        SGLang fills in `intel_amx` for `--device cpu` before platforms are asked; its kernels
        are not in the wheel, so that is treated as "none named" too.
        """
        import torch

        if server_args.attention_backend in (None, "intel_amx"):
            server_args.attention_backend = ATTENTION_BACKEND
        capability = torch.backends.cpu.get_cpu_capability()
        if server_args.dtype == "auto" and not multiplies_bf16(capability, platform.machine()):
            server_args.dtype = "float32"
            logger.warning(
                "this CPU (%s) multiplies no bf16 matrices: the model is served in float32, which "
                "computes prompts several times faster and takes twice the memory of bf16; few "
                "rows decode more slowly. To have bf16 all the same, say --dtype bfloat16",
                capability,
            )
        share_cores(
            os.environ,
            num_ranks=server_args.dp_size * server_args.tp_size * server_args.pp_size,
            cores=sorted(os.sched_getaffinity(0)),
        )

    def get_default_attention_backend(self) -> str:
        return ATTENTION_BACKEND

    def get_dispatch_key_name(self) -> str:
        return "native"

    def init_backend(self) -> None:
        """Register attention backend and timer in a worker process, its modules loaded."""
        from sglang.srt.layers.attention import attention_registry

        device_timer.install()
        attention_registry.register_attention_backend(ATTENTION_BACKEND)(_create_attention_backend)

    def get_compile_backend(self, mode: str | None = None) -> str:
        return "eager"

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"

    def get_torch_profiler_activity(self) -> Any:
        import torch

        return torch.profiler.ProfilerActivity.CPU
