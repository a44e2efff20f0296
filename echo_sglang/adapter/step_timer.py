"""Measures iterations and reduces SGLang's batches to the sums the step-time model needs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sglang.srt.managers.schedule_batch import ScheduleBatch

from echo_sglang.adapter.requests import is_offline
from echo_sglang.adapter.step_facts import StepFacts
from echo_sglang.domain.batch import BatchShape


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """An iteration on the device: what it computes, and when it was decided and launched.

    reason: of its plan. facts: what only the step trace wants to know, if there is one.
    online: the part of online requests, where somebody asks what offline work costs them.
    """

    shape: BatchShape
    decided_s: float
    launched_s: float
    reason: str
    facts: StepFacts | None = None
    online: BatchShape | None = None


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """An iteration that ended.

    step_s: from its decision, or the end of the one before if later, to its end: what the
    step-time model learns. device_s: the same from its launch.
    """

    launched: LaunchedStep
    ended_s: float
    step_s: float
    device_s: float


class StepTimer:
    """Pairs launches with results in order and says how long each iteration took.

    With a device that runs ahead (overlap), an iteration starts when it was decided or when
    the one before it ended, whichever is later. With a synchronous device (CPU) under
    overlap the result is looked at one iteration late, so the return of the forward call
    is the end.

    num_launched: batches since the start; an idle scheduler loops, but launches nothing.
    """

    def __init__(self) -> None:
        self.num_launched = 0
        self._launched: deque[LaunchedStep] = deque()
        self._last_end_s = 0.0

    def launched(self, step: LaunchedStep) -> None:
        """One batch was handed to the device."""
        self.num_launched += 1
        self._launched.append(step)

    def ended(self, now_s: float, *, device_end_s: float | None = None) -> MeasuredStep | None:
        """The oldest launched batch ended at `now_s`.

        device_end_s: when the device was done, where that was seen earlier than the end of
        the whole iteration; then the device was not used in between either.
        """
        if not self._launched:
            return None
        step = self._launched.popleft()
        device_end_s = now_s if device_end_s is None else device_end_s
        measured = MeasuredStep(
            launched=step,
            ended_s=now_s,
            step_s=now_s - max(step.decided_s, self._last_end_s),
            device_s=device_end_s - max(step.launched_s, self._last_end_s),
        )
        self._last_end_s = now_s
        return measured

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


def online_shape(batch: ScheduleBatch) -> BatchShape:
    """The sums of the online requests of a batch that is about to run. O(rows)."""
    decoding = batch.forward_mode.is_decode()
    num_extend = 0 if decoding else len(batch.reqs) - len(batch.decoding_reqs or ())
    shape = BatchShape()
    rows = kv_tokens = 0
    for i, req in enumerate(batch.reqs):
        if is_offline(req):
            continue
        if i < num_extend:
            shape = shape.with_chunk(batch.extend_lens[i], batch.prefix_lens[i])
        else:
            rows += 1
            kv_tokens += req.seqlen
    return shape._replace(decode_rows=rows, decode_kv_tokens=kv_tokens)


def batch_shape(batch: ScheduleBatch) -> BatchShape:
    """The sums of one batch that is about to run; all zero for an idle one."""
    if batch.forward_mode.is_decode():
        return BatchShape(
            decode_rows=len(batch.reqs), decode_kv_tokens=int(batch.seq_lens_cpu.sum())
        )
    if not batch.forward_mode.is_extend():
        return BatchShape()
    num_decode = len(batch.decoding_reqs) if batch.decoding_reqs else 0
    num_extend = len(batch.reqs) - num_decode
    extends = batch.extend_lens[:num_extend]
    prefixes = batch.prefix_lens[:num_extend]
    return BatchShape(
        extend_tokens=sum(extends),
        extend_pairs=sum([e * p for e, p in zip(extends, prefixes, strict=True)]),
        extend_square=sum([e * e for e in extends]),
        decode_rows=num_decode,
        # A row's prefix in a mixed batch lacks the token it computes, `seq_lens_cpu` has it.
        decode_kv_tokens=sum(batch.prefix_lens[num_extend:]) + num_decode,
        extend_prefix_tokens=sum(prefixes),
        longest_prefix=max(prefixes, default=0),
    )
