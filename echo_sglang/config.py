"""The one source of Echo's flags: names, defaults, help texts and checks."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from echo_sglang.errors import ConfigError

CONFIG_ENV = "ECHO_SGLANG_CONFIG"
"""Carries the launcher's configuration, as JSON, into SGLang's processes. Absent: Echo is off."""


def _option(flag: str, default: Any, text: str) -> Any:
    return field(default=default, metadata={"flag": flag, "help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoConfig:
    """Validated at birth; raises ConfigError naming the flag, its value and what is allowed."""

    slo_ttft_ms: float = _option(
        "--slo-ttft-ms", 2000.0, "time to first token promised to online requests, milliseconds"
    )
    slo_tpot_ms: float = _option(
        "--slo-tpot-ms", 200.0, "time per output token promised to online requests, milliseconds"
    )
    slo_margin: float = _option(
        "--echo-slo-margin",
        0.85,
        "share of each SLO that is planned with, above 0 and at most 1; the rest absorbs "
        "tokenization, HTTP and detokenization",
    )
    coverage: float = _option(
        "--echo-coverage",
        0.95,
        "share of iterations that must end within their predicted upper bound, 0.5 to 0.999",
    )
    reserve_tokens: int = _option(
        "--echo-reserve-tokens",
        -1,
        "KV tokens that offline work leaves free for online bursts; -1 is a tenth of the pool",
    )
    min_chunk_tokens: int = _option(
        "--echo-min-chunk-tokens",
        16,
        "an offline prefill chunk smaller than this waits for a longer one",
    )
    min_parked_steps: int = _option(
        "--echo-min-parked-steps",
        4,
        "iterations a preempted offline request stays away before it may resume, at least 2",
    )
    max_offline_wait_s: float = _option(
        "--echo-max-offline-wait-s",
        600.0,
        "an offline request that waited longer goes before the group being worked on, seconds",
    )
    max_pooled: int = _option(
        "--echo-max-pooled",
        200_000,
        "offline requests the pool holds; more are answered with 503",
    )
    decision_log: str = _option(
        "--echo-decision-log",
        "",
        "file that POST /echo/dump writes the last decisions to, as JSON lines; empty for none",
    )
    decision_log_size: int = _option(
        "--echo-decision-log-size", 4096, "decisions kept in memory for status and dumps"
    )
    profile: str = _option(
        "--echo-profile",
        "",
        "step-time profile made with echo-sglang train on this hardware and model; empty for none",
    )
    profile_force: bool = _option(
        "--echo-profile-force",
        False,
        "use --echo-profile although it was made on other hardware, model or flags",
    )
    trace: str = _option(
        "--echo-trace",
        "",
        "file that every iteration is recorded in, as JSON lines, for echo-sglang train; "
        "empty for none",
    )
    trace_mb: float = _option(
        "--echo-trace-mb",
        64.0,
        "megabytes after which that file becomes PATH.1 and a new one begins",
    )
    trace_files: int = _option(
        "--echo-trace-files", 4, "files of a step trace kept, the newest included"
    )

    def __post_init__(self) -> None:
        self._require("slo_ttft_ms", self.slo_ttft_ms > 0, "above 0")
        self._require("slo_tpot_ms", self.slo_tpot_ms > 0, "above 0")
        self._require("slo_margin", 0 < self.slo_margin <= 1, "above 0 and at most 1")
        self._require("coverage", 0.5 <= self.coverage <= 0.999, "0.5 to 0.999")
        self._require("reserve_tokens", self.reserve_tokens >= -1, "-1 or more")
        self._require("min_chunk_tokens", self.min_chunk_tokens >= 1, "1 or more")
        self._require("min_parked_steps", self.min_parked_steps >= 2, "2 or more")
        self._require("max_offline_wait_s", self.max_offline_wait_s > 0, "above 0")
        self._require("max_pooled", self.max_pooled >= 1, "1 or more")
        self._require("decision_log_size", self.decision_log_size >= 1, "1 or more")
        self._require("trace_mb", self.trace_mb >= 0.1, "0.1 or more")
        self._require("trace_files", self.trace_files >= 1, "1 or more")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        value = getattr(self, name)
        finite = not isinstance(value, float) or math.isfinite(value)
        if not (holds and finite):
            raise ConfigError(f"{flag_of(name)} {value}: allowed is {allowed}")

    def reserve_for(self, pool_tokens: int) -> int:
        """The burst reserve of a pool. Raises ConfigError if it does not leave half of it."""
        reserve = pool_tokens // 10 if self.reserve_tokens < 0 else self.reserve_tokens
        if reserve > pool_tokens // 2:
            raise ConfigError(
                f"--echo-reserve-tokens {reserve}: at most half of the KV pool of "
                f"{pool_tokens} tokens is allowed; lower it or raise --max-total-tokens"
            )
        return reserve

    def to_json(self) -> str:
        """The text that `from_json` reads back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EchoConfig:
        """Raises ConfigError if the text is not what `to_json` writes."""
        try:
            values = json.loads(text)
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{CONFIG_ENV} holds {text[:80]!r}, which is not an Echo configuration "
                f"({error}); unset it or start through python -m echo_sglang.launch_server"
            ) from error

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add one flag per field."""
        for option in dataclasses.fields(cls):
            flag, text = option.metadata["flag"], option.metadata["help"]
            if isinstance(option.default, bool):
                parser.add_argument(flag, dest=option.name, action="store_true", help=text)
                continue
            parser.add_argument(
                flag,
                dest=option.name,
                type=type(option.default),
                default=option.default,
                help=f"{text} (default: {option.default!r})",
            )

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> EchoConfig:
        """Build from parsed arguments; names that are not fields are ignored."""
        names = [option.name for option in dataclasses.fields(cls)]
        return cls(**{name: arguments[name] for name in names})


def flag_of(name: str) -> str:
    """The command-line flag of a field."""
    flags = {option.name: option.metadata["flag"] for option in dataclasses.fields(EchoConfig)}
    return str(flags[name])
