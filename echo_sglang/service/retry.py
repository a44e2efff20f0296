"""Run the failed lines of a batch again, as a new batch."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from echo_sglang.service.errors import ConflictError, NotFoundError
from echo_sglang.service.files import Files
from echo_sglang.service.model import Batch, IdempotencyKey, NewBatch
from echo_sglang.service.store import Store
from echo_sglang.service.validation import split_lines

_ALL_BYTES = 1 << 62
_MAX_PAIRS = 16


def retry_failed(
    store: Store,
    files: Files,
    owner: str,
    batch_id: str,
    now: float,
    idempotency: IdempotencyKey | None = None,
) -> Batch:
    """A new batch with a new input file: the lines that are in the error file of an ended one.

    It has the same window and metadata, and `retry_of` if there is room for one pair more.
    Raises NotFoundError (also if the input or error file is gone), ConflictError if the batch
    has not ended or no line failed.
    """
    old = store.batches.get(owner, batch_id)
    if not old.state.is_final:
        raise ConflictError(f"batch {batch_id} is {old.state.value}; only an ended one is retried")
    if old.error_file_id is None:
        raise ConflictError(f"batch {batch_id} has no failed lines to retry")
    wanted = _failed_ids(files, owner, old.error_file_id)
    source = files.get(owner, old.input_file_id)
    upload = files.begin(owner, f"retry-of-{old.id}.jsonl", source.purpose)
    try:
        for raw in _lines(files, owner, old.input_file_id):
            if raw.strip() and orjson.loads(raw)["custom_id"] in wanted:
                upload.write(raw + b"\n")
        new_input = upload.finish()
    except BaseException:
        upload.abort()
        raise
    metadata = dict(old.metadata)
    if len(metadata) < _MAX_PAIRS or "retry_of" in metadata:
        metadata["retry_of"] = old.id
    new = NewBatch(
        owner=owner,
        endpoint=old.endpoint,
        input_file_id=new_input.id,
        completion_window=old.completion_window,
        window_s=old.expires_at - old.created_at,
        metadata=metadata,
        output_expires_after_s=old.output_expires_after_s,
    )
    try:
        batch, made = store.batches.create(new, now, idempotency)
    except BaseException:
        files.delete(owner, new_input.id)
        raise
    if not made:
        files.delete(owner, new_input.id)
    return batch


def _failed_ids(files: Files, owner: str, error_file_id: str) -> frozenset[str]:
    lines = _lines(files, owner, error_file_id)
    return frozenset(orjson.loads(raw)["custom_id"] for raw in lines)


def _lines(files: Files, owner: str, file_id: str) -> Iterator[bytes]:
    try:
        file = files.get(owner, file_id)
    except NotFoundError as error:
        raise NotFoundError(f"{error}; without it nothing can be retried") from None
    for _, raw in split_lines(files.read(file), _ALL_BYTES):
        assert raw is not None
        yield raw
