"""The one source of Echo's flags: names, defaults, help texts and checks."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from echo_sglang.errors import ConfigError

MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0
"""Of an offline job, whoever names it."""

CONFIG_ENV = "ECHO_SGLANG_CONFIG"
"""Carries the launcher's configuration, as JSON, into SGLang's processes. Absent: Echo is off."""


class EvictionPolicy(StrEnum):
    """How the victims of eviction are chosen."""

    VALUE = "value"
    """By worth: learned online reuse plus exact future offline references."""
    CLASS_LRU = "class-lru"
    """Offline before online, each least recently used first."""
    LRU = "lru"
    """SGLang's own cache, least recently used first."""


class MediaSources(StrEnum):
    """Which images, videos and audio a request may name."""

    INLINE = "inline"
    """What it carries itself (data: URLs, base64), and URLs of --allowed-media-domains."""
    ANY = "any"
    """Any URL and any file of the server, as SGLang does."""


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
        "HTTP and detokenization (of the TPOT 0.75 tokens' time in all, and up to two more "
        "while much online prefill runs)",
    )
    impact_percent: float = _option(
        "--echo-impact-percent",
        0.0,
        "bound offline work by what it costs online requests instead of by their SLOs: first "
        "tokens at most so many percent later than without it, others at most two fifths of that; "
        "0 is off",
    )
    coverage: float = _option(
        "--echo-coverage",
        0.95,
        "share of iterations that must end within their predicted upper bound, 0.5 to 0.999",
    )
    eviction: str = _option(
        "--echo-eviction",
        EvictionPolicy.VALUE.value,
        "who leaves the KV cache first: value (dead offline KV, then by learned online reuse and "
        "exact future offline references), class-lru (offline before online) or lru (SGLang's own)",
    )
    online_weight: float = _option(
        "--echo-online-weight",
        4.0,
        "offline cache hits that one online hit is worth to --echo-eviction value, 0 or more",
    )
    reserve_tokens: int = _option(
        "--echo-reserve-tokens",
        -1,
        "KV tokens that offline work leaves free for online bursts; -1 forecasts them from the "
        "growth of online KV that was seen, between floor and ceiling",
    )
    reserve_floor_tokens: int = _option(
        "--echo-reserve-floor-tokens",
        -1,
        "least that a forecast reserve may be; -1 is a fiftieth of the pool",
    )
    reserve_ceiling_tokens: int = _option(
        "--echo-reserve-ceiling-tokens",
        -1,
        "most that a forecast reserve may be, and what it is at first; -1 is a tenth of the pool, "
        "or the floor if that is more",
    )
    reserve_horizon_s: float = _option(
        "--echo-reserve-horizon-s",
        5.0,
        "how far the forecast looks: the time offline work may take to give KV back, seconds",
    )
    reserve_quantile: float = _option(
        "--echo-reserve-quantile",
        0.95,
        "share of the moments after which online KV may not grow by more than the reserve within "
        "the horizon, 0.5 to 0.999",
    )
    min_chunk_tokens: int = _option(
        "--echo-min-chunk-tokens",
        16,
        "an offline prefill chunk smaller than this waits for a longer one",
    )
    min_parked_steps: int = _option(
        "--echo-min-parked-steps",
        4,
        "iterations a preempted offline request stays away before it may resume, at least 2; twice "
        "as many every time it is preempted again",
    )
    max_offline_wait_s: float = _option(
        "--echo-max-offline-wait-s",
        600.0,
        "an offline request that waited longer goes before the group being worked on, seconds",
    )
    turn_tokens: int = _option(
        "--echo-turn-tokens",
        65_536,
        "tokens of service that one offline job gets before another's turn; more keeps shared "
        "prefixes together, fewer shares evenly within a shorter time",
    )
    job_weights: str = _option(
        "--echo-job-weights",
        "",
        "weights of offline jobs, NAME=WEIGHT,...; they count more than what requests say in "
        "echo.weight, and * stands for all other jobs; empty leaves it to the requests",
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
    drain_s: float = _option(
        "--echo-drain-s",
        60.0,
        "seconds that online requests get to finish after SIGTERM; offline ones are given back "
        "at once",
    )
    max_body_mb: float = _option(
        "--echo-max-body-mb", 64.0, "largest body of a request, megabytes; uploads have their own"
    )
    max_grammar_kb: float = _option(
        "--echo-max-grammar-kb",
        128.0,
        "largest JSON schema, regex, EBNF or structural tag of a request, kilobytes",
    )
    max_grammar_s: float = _option(
        "--echo-max-grammar-s", 30.0, "seconds that a grammar may take to compile"
    )
    media: str = _option(
        "--echo-media",
        MediaSources.INLINE.value,
        "media a request may name: inline (what it carries itself, and URLs of "
        "--allowed-media-domains) or any (any URL, any file of the server)",
    )
    data_dir: str = _option(
        "--echo-data-dir",
        "",
        "folder in which batches and files are kept; turns /v1/files and /v1/batches on",
    )
    store_url: str = _option(
        "--echo-store-url",
        "",
        "database shared by several servers, postgresql+psycopg://...; empty for SQLite in the "
        "data folder",
    )
    files_url: str = _option(
        "--echo-files-url",
        "",
        "where the bytes of files are kept, s3://bucket/prefix; empty for the data folder",
    )
    store_upgrade: bool = _option(
        "--echo-store-upgrade", False, "bring a store of an older release up to date at start"
    )
    batch_in_flight: int = _option(
        "--echo-batch-in-flight", 1024, "batch lines handed to the scheduler at once, at most"
    )
    batch_max_upload_mb: float = _option(
        "--echo-batch-max-upload-mb", 200.0, "megabytes that an uploaded file may have, at most 200"
    )
    batch_webhook_url: str = _option(
        "--echo-batch-webhook-url",
        "",
        "URL that is told when a batch ends, as signed standard webhooks; empty for none",
    )
    batch_webhook_secret_file: str = _option(
        "--echo-batch-webhook-secret-file",
        "",
        "file with the key that webhooks are signed with, whsec_ and base64",
    )
    batch_tenant_header: str = _option(
        "--echo-batch-tenant-header",
        "",
        "request header, set by your gateway, that names whose files and batches a request may "
        "see; empty for one tenant",
    )

    def __post_init__(self) -> None:
        self._require("slo_ttft_ms", self.slo_ttft_ms > 0, "above 0")
        self._require("slo_tpot_ms", self.slo_tpot_ms > 0, "above 0")
        self._require("slo_margin", 0 < self.slo_margin <= 1, "above 0 and at most 1")
        self._require("impact_percent", 0 <= self.impact_percent <= 100, "0 to 100")
        self._require("coverage", 0.5 <= self.coverage <= 0.999, "0.5 to 0.999")
        policies = [policy.value for policy in EvictionPolicy]
        self._require("eviction", self.eviction in policies, ", ".join(policies))
        self._require("online_weight", self.online_weight >= 0, "0 or more")
        for name in ("reserve_tokens", "reserve_floor_tokens", "reserve_ceiling_tokens"):
            self._require(name, getattr(self, name) >= -1, "-1 or more")
        self._require("reserve_horizon_s", 0 < self.reserve_horizon_s <= 600, "above 0 to 600")
        self._require("reserve_quantile", 0.5 <= self.reserve_quantile <= 0.999, "0.5 to 0.999")
        self._require("min_chunk_tokens", self.min_chunk_tokens >= 1, "1 or more")
        self._require("min_parked_steps", self.min_parked_steps >= 2, "2 or more")
        self._require("max_offline_wait_s", self.max_offline_wait_s > 0, "above 0")
        self._require("turn_tokens", self.turn_tokens >= 1, "1 or more")
        self.weights_of_jobs()
        self._require("max_pooled", self.max_pooled >= 1, "1 or more")
        self._require("decision_log_size", self.decision_log_size >= 1, "1 or more")
        self._require("trace_mb", self.trace_mb >= 0.1, "0.1 or more")
        self._require("trace_files", self.trace_files >= 1, "1 or more")
        self._require("drain_s", self.drain_s >= 0, "0 or more")
        self._require("max_body_mb", self.max_body_mb > 0, "above 0")
        self._require("max_grammar_kb", self.max_grammar_kb > 0, "above 0")
        self._require("max_grammar_s", self.max_grammar_s > 0, "above 0")
        sources = [source.value for source in MediaSources]
        self._require("media", self.media in sources, ", ".join(sources))
        self._require("batch_in_flight", self.batch_in_flight >= 1, "1 or more")
        megabytes = self.batch_max_upload_mb
        self._require("batch_max_upload_mb", 0 < megabytes <= 200, "above 0 to 200")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        value = getattr(self, name)
        finite = not isinstance(value, float) or math.isfinite(value)
        if not (holds and finite):
            raise ConfigError(f"{flag_of(name)} {value}: allowed is {allowed}")

    def weights_of_jobs(self) -> dict[str, float]:
        """--echo-job-weights by job. Raises ConfigError naming what is no weight of a job."""
        weights: dict[str, float] = {}
        for part in filter(None, map(str.strip, self.job_weights.split(","))):
            name, _, weight = (text.strip() for text in part.rpartition("="))
            try:
                weights[name] = float(weight)
            except ValueError:
                weights[name] = math.nan
            if not (name and MIN_WEIGHT <= weights[name] <= MAX_WEIGHT):
                raise ConfigError(
                    f"{flag_of('job_weights')} {part!r}: allowed is NAME=WEIGHT with a weight of "
                    f"{MIN_WEIGHT} to {MAX_WEIGHT:g}"
                )
        return weights

    def reserve_limits(self, pool_tokens: int) -> tuple[int, int]:
        """Floor and ceiling of the burst reserve in a pool; equal if it is fixed.

        Raises ConfigError if the reserve could take more than half of the pool, or if the floor
        is above the ceiling.
        """
        if self.reserve_tokens >= 0:
            self._require_half("reserve_tokens", self.reserve_tokens, pool_tokens)
            return self.reserve_tokens, self.reserve_tokens
        floor, ceiling = self.reserve_floor_tokens, self.reserve_ceiling_tokens
        floor = pool_tokens // 50 if floor < 0 else floor
        self._require_half("reserve_floor_tokens", floor, pool_tokens)
        ceiling = max(pool_tokens // 10, floor) if ceiling < 0 else ceiling
        self._require_half("reserve_ceiling_tokens", ceiling, pool_tokens)
        self._require("reserve_ceiling_tokens", floor <= ceiling, f"at least the floor, {floor}")
        return floor, ceiling

    def _require_half(self, name: str, tokens: int, pool_tokens: int) -> None:
        if tokens > pool_tokens // 2:
            raise ConfigError(
                f"{flag_of(name)} {tokens}: at most half of the KV pool of {pool_tokens} tokens "
                "is allowed; lower it or raise --max-total-tokens"
            )

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
