"""What the step trace notes of a batch at its launch, while the batch still says it."""

from __future__ import annotations

from dataclasses import dataclass

from sglang.srt.managers.schedule_batch import ScheduleBatch

from echo_sglang.adapter.requests import is_offline, num_offline
from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.step_record import MAX_REQUEST_PAIRS, ExtendSums, StepMode


@dataclass(frozen=True, slots=True)
class StepFacts:
    """The fields of `StepRecord` that are known at launch, but for those of its shape."""

    iteration: int
    mode: StepMode
    extends: tuple[tuple[int, int], ...] | None
    sums: ExtendSums
    padded_rows: int | None
    online_rows: int
    online_tokens: int
    evicted_tokens: int
    released_rows: int


def step_facts(
    batch: ScheduleBatch,
    shape: BatchShape,
    *,
    padded_rows: int | None,
    evicted_tokens: int,
    released_rows: int,
) -> StepFacts:
    """Reads a batch that was just launched; prefilling requests come first in a mixed one."""
    num_extend = len(batch.reqs) - shape.decode_rows if shape.has_extend else 0
    reqs = batch.reqs
    extends: tuple[tuple[int, int], ...] | None = ()
    sums = ExtendSums()
    if num_extend:
        prefixes = batch.prefix_lens[:num_extend]
        if num_extend <= MAX_REQUEST_PAIRS:
            extends = tuple(zip(batch.extend_lens[:num_extend], prefixes, strict=True))
        else:
            extends = None
        sums = ExtendSums(
            rows=num_extend,
            tokens=shape.extend_tokens,
            prefix_tokens=sum(prefixes),
            pairs=shape.extend_pairs,
            square=shape.extend_square,
        )
    return StepFacts(
        iteration=batch.forward_iter,
        mode=step_mode(shape),
        extends=extends,
        sums=sums,
        padded_rows=padded_rows,
        online_rows=shape.decode_rows - num_offline(reqs[num_extend:]) if shape.decode_rows else 0,
        online_tokens=sum(
            batch.extend_lens[i] for i in range(num_extend) if not is_offline(reqs[i])
        ),
        evicted_tokens=evicted_tokens,
        released_rows=released_rows,
    )


def step_mode(shape: BatchShape) -> StepMode:
    """The mode of a batch, by what it computes."""
    if shape.has_extend:
        return StepMode.MIXED if shape.decode_rows else StepMode.EXTEND
    return StepMode.DECODE if shape.decode_rows else StepMode.IDLE
