"""The two ends of a batch's life: reading its input file, writing its result files.

Plain functions for a thread of their own. Both can be killed at any moment and run again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from echo_sglang.service.answers import UNFINISHED, ResultMaker
from echo_sglang.service.contents import READ_BYTES, open_regular
from echo_sglang.service.errors import LeaseLostError, NotFoundError, StoreIOError
from echo_sglang.service.files import DEFAULT_LIFETIME_S, Files
from echo_sglang.service.model import (
    Batch,
    BatchError,
    BatchState,
    FileObject,
    Lease,
    ResultKind,
)
from echo_sglang.service.store import Store
from echo_sglang.service.validation import Validation, ValidationLimits

_LINES_A_WRITE = 10_000
"""Each write touches most pages of the index by prefix, so few large ones write far less; one
of this size keeps others from writing for some 0.2 s."""


def validate_batch(
    store: Store,
    files: Files,
    lease: Lease,
    batch: Batch,
    limits: ValidationLimits,
    clock: Callable[[], float],
) -> Batch:
    """Read the input file; the batch is in progress, failed, expired or cancelled after it.

    Raises LeaseLostError, StoreError.
    """
    work, endings = store.work, store.endings
    if batch.state is BatchState.VALIDATING and clock() >= batch.expires_at:
        return endings.expire_unvalidated(lease, clock())
    work.begin_lines(lease)
    validation = Validation(batch.endpoint, limits, batch_id=batch.id)
    try:
        lines = validation.lines(_pieces(files, batch.input_file_id))
        while page := list(islice(lines, _LINES_A_WRITE)):
            if not validation.errors:
                work.add_lines(lease, page)
    except (NotFoundError, StoreIOError) as error:
        lost = BatchError(code="input_unreadable", message=str(error), param="input_file_id")
        return endings.refuse(lease, [lost], clock())
    if validation.errors:
        return endings.refuse(lease, validation.errors, clock())
    assert validation.model is not None
    return work.start(lease, validation.model, clock(), validation.demand)


def finish_batch(
    store: Store,
    files: Files,
    lease: Lease,
    batch: Batch,
    maker: ResultMaker,
    clock: Callable[[], float],
) -> Batch:
    """Answer what is left, write the files, end the batch. The batch is finalizing or
    cancelling. Raises LeaseLostError, StoreError."""
    work, endings = store.work, store.endings
    assert batch.ends_as is not None
    code, message = UNFINISHED.get(batch.ends_as, ("", ""))
    while endings.answer_rest(lease, lambda line: maker.unanswered(line, code, message)):
        pass
    batch = work.held(lease)
    counts = {ResultKind.OUTPUT: batch.counts.completed, ResultKind.ERROR: batch.counts.failed}
    written = [write_file(store, files, batch, kind) for kind, lines in counts.items() if lines]
    batch = endings.finish(lease, written, clock())
    files.drop_copy(batch.input_file_id)
    return batch


def write_file(store: Store, files: Files, batch: Batch, kind: ResultKind) -> FileObject:
    """Write one result file of a batch that is ending, whole or not at all.

    Raises LeaseLostError if another runner ended the batch meanwhile, StoreError.
    """
    output = kind is ResultKind.OUTPUT
    lines = _counted(
        store.endings.results(batch.id, kind),
        batch.counts.completed if output else batch.counts.failed,
        batch.id,
    )
    return files.write_result(
        batch.owner,
        batch.output_file if output else batch.error_file,
        f"{batch.id}_{kind.value}.jsonl",
        lines,
        batch.output_expires_after_s or DEFAULT_LIFETIME_S,
    )


def _pieces(files: Files, file_id: str) -> Iterator[bytes]:
    path = files.local_path(file_id)
    try:
        with open_regular(path) as descriptor:
            while piece := os.read(descriptor, READ_BYTES):
                yield piece
    except OSError as error:
        raise StoreIOError(f"input file {file_id} cannot be read: {error}") from error


def _counted(lines: Iterable[bytes], expected: int, batch_id: str) -> Iterator[bytes]:
    """The lines, as many as counted. Fewer: another runner ended the batch meanwhile and its
    results are being cleaned away; this writer must not replace the whole file by a part."""
    number = 0
    for line in lines:
        number += 1
        yield line
    if number != expected:
        raise LeaseLostError(f"{batch_id} has {number} results of {expected}: ended elsewhere")
