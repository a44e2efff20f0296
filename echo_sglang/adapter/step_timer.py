"""Measures iterations and reduces SGLang's batches to the sums the step-time model needs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sglang.srt.managers.schedule_batch import ScheduleBatch

from echo_sglang.domain.batch import BatchShape


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """An iteration on the device: what it computes and when it was decided."""

    shape: BatchShape
    decided_s: float


class StepTimer:
    """Pairs launches with results in order and says how long each iteration took.

    With a device that runs ahead (overlap), an iteration starts when it was decided or when
    the one before it ended, whichever is later. With a synchronous device (CPU) under
    overlap the result is looked at one iteration late, so the return of the forward call
    is the end.
    """

    def __init__(self) -> None:
        self._launched: deque[LaunchedStep] = deque()
        self._last_end_s = 0.0

    def launched(self, shape: BatchShape, decided_s: float) -> None:
        """One batch was handed to the device."""
        self._launched.append(LaunchedStep(shape, decided_s))

    def ended(self, now_s: float) -> tuple[BatchShape, float] | None:
        """The oldest launched batch ended at `now_s`: (shape, seconds it took)."""
        if not self._launched:
            return None
        step = self._launched.popleft()
        start_s = max(step.decided_s, self._last_end_s)
        self._last_end_s = now_s
        return step.shape, now_s - start_s

    def in_flight(self) -> LaunchedStep | None:
        """The newest batch whose result was not seen yet."""
        return self._launched[-1] if self._launched else None

    def rest_s(self, now_s: float, predicted_s: float) -> float:
        """Rest of the batch in flight, given its predicted duration."""
        step = self.in_flight()
        if step is None:
            return 0.0
        start_s = max(step.decided_s, self._last_end_s)
        return max(predicted_s - (now_s - start_s), 0.0)


def batch_shape(batch: ScheduleBatch) -> BatchShape | None:
    """The sums of one batch; None for one that computes no token (idle)."""
    if batch.forward_mode.is_decode():
        return BatchShape(
            decode_rows=len(batch.reqs), decode_kv_tokens=int(batch.seq_lens_cpu.sum())
        )
    if not batch.forward_mode.is_extend():
        return None
    num_decode = len(batch.decoding_reqs) if batch.decoding_reqs else 0
    num_extend = len(batch.reqs) - num_decode
    extends = batch.extend_lens[:num_extend]
    prefixes = batch.prefix_lens[:num_extend]
    return BatchShape(
        extend_tokens=sum(extends),
        extend_pairs=sum(e * p for e, p in zip(extends, prefixes, strict=True)),
        extend_square=sum(e * e for e in extends),
        decode_rows=num_decode,
        decode_kv_tokens=sum(batch.prefix_lens[num_extend:]),
        extend_prefix_tokens=sum(prefixes),
    )
