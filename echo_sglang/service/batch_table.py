"""Batches as the API sees and changes them."""

from __future__ import annotations

from collections.abc import Sequence

from echo_sglang.service.database import Database
from echo_sglang.service.model import Batch, IdempotencyKey, NewBatch, ResultKind


class BatchTable:
    """Batches as the API sees and changes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, new: NewBatch, now: float, idempotency: IdempotencyKey | None = None
    ) -> tuple[Batch, bool]:
        """A new batch in `validating`, and True; or the one that the same key made, and False.

        Raises NotFoundError without the input file, InvalidInputError if its purpose is not
        "batch", IdempotencyError if the key came with another body.
        """
        raise NotImplementedError

    def get(self, owner: str, batch_id: str) -> Batch:
        """Raises NotFoundError."""
        raise NotImplementedError

    def page(
        self, owner: str, *, limit: int, after: str | None = None
    ) -> tuple[Sequence[Batch], bool]:
        """At most `limit` batches, newest first, after the one called `after`; if there are
        more. Raises InvalidInputError if `after` is not a batch of this owner."""
        raise NotImplementedError

    def cancel(self, owner: str, batch_id: str, now: float) -> Batch:
        """Begin to cancel; again is allowed. Raises NotFoundError, ConflictError once the
        batch is finalizing or has ended."""
        raise NotImplementedError

    def pause(self, owner: str, batch_id: str) -> Batch:
        """Start no more lines of it. Raises NotFoundError, ConflictError once it is ending."""
        raise NotImplementedError

    def resume(self, owner: str, batch_id: str) -> Batch:
        """Take back `pause`. Raises like `pause`."""
        raise NotImplementedError

    def by_result_file(self, owner: str, file_id: str) -> tuple[Batch, ResultKind]:
        """The batch whose output or error file has this id, whether final or still growing.

        Raises NotFoundError also for a file that has no line yet.
        """
        raise NotImplementedError

    def result_lines(
        self, batch_id: str, kind: ResultKind, start: int, limit: int
    ) -> Sequence[bytes]:
        """Lines `start` (from 0) and on of a file that still grows, in the order of the final
        file, each without its newline. Empty once the batch has ended: read the file then."""
        raise NotImplementedError
