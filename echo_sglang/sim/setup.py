"""Which server is emulated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from echo_sglang.config import EchoConfig
from echo_sglang.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSetup:
    """The server that is emulated.

    echo: Echo's configuration, or None for stock SGLang. priority: stock is told the class.
    bound_s: stock's iterations are kept below so many seconds, see `bounded`; None leaves it as
    it is.
    host_s: what the scheduler's own work costs per iteration; None charges what it really
    takes here. server_args: further arguments of SGLang's ServerArgs, by field name.
    """

    echo: EchoConfig | None = None
    kv_tokens: int = 400_000
    context_tokens: int = 32_768
    max_running: int = 256
    chunk_tokens: int = 8192
    mixed: bool = False
    overlap: bool = True
    priority: bool = False
    bound_s: float | None = None
    host_s: float | None = 0.0
    server_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.echo is not None and self.priority:
            raise ConfigError("priority is for stock SGLang; Echo reads the service tier")
        if self.bound_s is not None and (self.echo is not None or not 0 < self.bound_s < math.inf):
            raise ConfigError(
                f"bound_s {self.bound_s}: seconds above 0, and only without Echo's configuration, "
                "which bounds iterations itself"
            )
        if min(self.kv_tokens, self.context_tokens, self.max_running, self.chunk_tokens) < 1:
            raise ConfigError(
                f"kv_tokens {self.kv_tokens}, context_tokens {self.context_tokens}, max_running "
                f"{self.max_running}, chunk_tokens {self.chunk_tokens}: all must be 1 or more"
            )
