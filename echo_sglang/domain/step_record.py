"""What the step trace keeps of one iteration, and the line of the trace it becomes.

A trace is text, one JSON value a line: a header (`TraceHeader`), then one array an
iteration in the order of `COLUMNS`. Arrays, because names on every line would be most of
the file; the header repeats the columns, so a reader needs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from echo_sglang.domain.batch import BatchShape

TRACE_SCHEMA = "echo-step-trace"
TRACE_VERSION = 1

MAX_REQUEST_PAIRS = 64
"""Prefilling requests of one iteration kept one by one; of more, only their sums."""

COLUMNS = (
    "iteration",
    "mode",
    "ended_s",
    "step_s",
    "host_s",
    "device_s",
    "extends",
    "extend_sums",
    "decode_rows",
    "decode_kv_tokens",
    "padded_rows",
    "online_rows",
    "online_tokens",
    "evicted_tokens",
    "released_rows",
    "reason",
)


class StepMode(StrEnum):
    """What one iteration computed."""

    EXTEND = "extend"
    """Prompt tokens only."""
    DECODE = "decode"
    """One token a row."""
    MIXED = "mixed"
    """Prompt tokens and decode rows together."""
    IDLE = "idle"
    """Nothing, beside other ranks that computed something."""


@dataclass(frozen=True, slots=True)
class ExtendSums:
    """The prefilling requests of one iteration, summed.

    prefix_tokens: KV already there before each of them, summed over requests.
    pairs, square: sums of chunk * prefix and chunk * chunk, as in `BatchShape`.
    """

    rows: int = 0
    tokens: int = 0
    prefix_tokens: int = 0
    pairs: int = 0
    square: int = 0

    @classmethod
    def of(cls, extends: Sequence[tuple[int, int]]) -> ExtendSums:
        """The sums of (chunk, prefix) pairs, both in tokens."""
        return cls(
            rows=len(extends),
            tokens=sum(chunk for chunk, _ in extends),
            prefix_tokens=sum(prefix for _, prefix in extends),
            pairs=sum(chunk * prefix for chunk, prefix in extends),
            square=sum(chunk * chunk for chunk, _ in extends),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One iteration, as measured.

    iteration: SGLang's forward counter; it grows by one with every batch.
    ended_s: when its result was there, seconds since the trace began, monotonic clock.
    step_s: how long it took: from its decision, or from the end of the one before if the
        device ran ahead, to its end. This is what the step-time model predicts.
    host_s: from its decision until the device was given the batch.
    device_s: from then, or from the end of the one before, to its end.
    extends: (chunk, prefix) tokens of each prefilling request; None for more than
        MAX_REQUEST_PAIRS of them.
    sums: their sums, always there.
    padded_rows: decode rows of the captured graph that ran, None if none did.
    online_rows, online_tokens: the share of online requests of decode rows and prompt tokens.
    evicted_tokens: cached KV that was given up for it.
    released_rows: offline rows and half-done prompts that gave way before it.
    reason: the word of `domain.plan.Reason` that its plan gave.
    """

    iteration: int
    mode: StepMode
    ended_s: float
    step_s: float
    host_s: float
    device_s: float
    extends: tuple[tuple[int, int], ...] | None = ()
    sums: ExtendSums = ExtendSums()
    decode_rows: int = 0
    decode_kv_tokens: int = 0
    padded_rows: int | None = None
    online_rows: int = 0
    online_tokens: int = 0
    evicted_tokens: int = 0
    released_rows: int = 0
    reason: str = ""

    @property
    def offline_rows(self) -> int:
        """Decode rows of offline requests."""
        return self.decode_rows - self.online_rows

    @property
    def offline_tokens(self) -> int:
        """Prompt tokens computed for offline requests."""
        return self.sums.tokens - self.online_tokens

    @property
    def shape(self) -> BatchShape:
        """The batch as the step-time model sees it."""
        return BatchShape(
            extend_tokens=self.sums.tokens,
            extend_pairs=self.sums.pairs,
            extend_square=self.sums.square,
            decode_rows=self.decode_rows,
            decode_kv_tokens=self.decode_kv_tokens,
            extend_prefix_tokens=self.sums.prefix_tokens,
            longest_prefix=self._longest_prefix(),
        )

    def _longest_prefix(self) -> int:
        """Exact where the pairs are kept, else the mean: at most the longest."""
        if self.extends is not None:
            return max((prefix for _, prefix in self.extends), default=0)
        return self.sums.prefix_tokens // max(self.sums.rows, 1)

    def to_row(self) -> list[Any]:
        """JSON values in the order of COLUMNS; times to the microsecond."""
        sums = self.sums
        return [
            self.iteration,
            self.mode.value,
            round(self.ended_s, 6),
            round(self.step_s, 6),
            round(self.host_s, 6),
            round(self.device_s, 6),
            self.extends,
            None
            if self.extends is not None
            else [sums.rows, sums.tokens, sums.prefix_tokens, sums.pairs, sums.square],
            self.decode_rows,
            self.decode_kv_tokens,
            self.padded_rows,
            self.online_rows,
            self.online_tokens,
            self.evicted_tokens,
            self.released_rows,
            self.reason,
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceHeader:
    """The first line of a trace file: which server wrote it.

    identity: what its times depend on (hardware, model, ...); see `estimate.profile`.
    limits: the server's own bounds, tokens and rows.
    started_unix_s: when the trace began; the same in all files of one server.
    """

    identity: Mapping[str, Any]
    limits: Mapping[str, int] = field(default_factory=dict)
    started_unix_s: float = 0.0

    def to_json_values(self) -> dict[str, Any]:
        """The JSON object of the line."""
        return {
            "schema": TRACE_SCHEMA,
            "version": TRACE_VERSION,
            "columns": list(COLUMNS),
            "identity": dict(self.identity),
            "limits": dict(self.limits),
            "started_unix_s": self.started_unix_s,
        }
