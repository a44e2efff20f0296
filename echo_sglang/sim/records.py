"""What became of every request and of every iteration of an emulated run."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from echo_sglang.domain.batch import BatchShape
from echo_sglang.sim.workload import Request


@dataclass(slots=True)
class RequestRecord:
    """One request as its client saw it. Times are seconds since the start.

    received: output tokens received. cached_tokens: prompt tokens of its first admission
    that came from the cache. recomputed_tokens: what its resumptions had to compute again.
    preemptions: how often it gave its place up. finish: SGLang's reason, None while it runs.
    """

    request: Request
    first_s: float | None = None
    last_s: float | None = None
    done_s: float | None = None
    max_gap_s: float = 0.0
    received: int = 0
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    finish: str | None = None
    _computed_up_to: int = 0

    def compute(self, context_tokens: int, computed_tokens: int) -> None:
        """An iteration computed the last `computed_tokens` of its `context_tokens`."""
        start = context_tokens - computed_tokens
        if self._computed_up_to > start:
            self.recomputed_tokens += min(self._computed_up_to, context_tokens) - start
        if self._computed_up_to < context_tokens:
            self._computed_up_to = context_tokens

    def receive(self, tokens: int, now_s: float) -> None:
        """`tokens` have arrived by `now_s`, all in all."""
        if tokens <= self.received:
            return
        if self.first_s is None:
            self.first_s = now_s
        else:
            assert self.last_s is not None
            self.max_gap_s = max(self.max_gap_s, now_s - self.last_s)
        self.last_s = now_s
        self.received = tokens

    @property
    def ttft_s(self) -> float | None:
        """Seconds from arrival to the first token."""
        return None if self.first_s is None else self.first_s - self.request.arrival_s

    @property
    def waited_s(self) -> float | None:
        """Seconds to the first token or, without one, until the request was given up."""
        if self.first_s is None and self.done_s is not None:
            return self.done_s - self.request.arrival_s
        return self.ttft_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per token after the first; None with fewer than two."""
        if self.first_s is None or self.last_s is None or self.received < 2:
            return None
        return (self.last_s - self.first_s) / (self.received - 1)


class BatchRows(NamedTuple):
    """What a batch computes, by row: the request, the tokens in its context with those computed
    now, and how many these are."""

    rids: Sequence[str]
    context_tokens: Sequence[int]
    computed_tokens: Sequence[int]


@dataclass(slots=True)
class StepLog:
    """Sums over iterations, and a fingerprint of every batch that ran.

    seconds: of device time, by regime. extend_tokens: prompt tokens computed.
    """

    iterations: int = 0
    device_s: float = 0.0
    extend_tokens: int = 0
    decode_rows: int = 0
    _digest: hashlib._Hash = field(default_factory=hashlib.sha1)

    def add(self, shape: BatchShape, seconds: float, rows: BatchRows) -> None:
        """One batch of `shape`, which took `seconds` of the device."""
        self.iterations += 1
        self.device_s += seconds
        self.extend_tokens += shape.extend_tokens
        self.decode_rows += shape.decode_rows
        numbers = len(rows.rids), *rows.context_tokens, *rows.computed_tokens
        self._digest.update("\n".join(rows.rids).encode())
        self._digest.update(array("q", numbers).tobytes())

    @property
    def sha1(self) -> str:
        """Equal for runs that computed the same batches in the same order."""
        return self._digest.hexdigest()
