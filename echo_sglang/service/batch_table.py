"""Batches as the API sees and changes them."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from echo_sglang.service import schema
from echo_sglang.service.batch_rows import (
    batch_of,
    find_batch,
    insert_batch,
    insert_if_absent,
    move,
    update_batch,
)
from echo_sglang.service.database import Database
from echo_sglang.service.errors import (
    ConflictError,
    IdempotencyError,
    InvalidInputError,
    NotFoundError,
)
from echo_sglang.service.forecast import Demand
from echo_sglang.service.model import (
    FILE_ID,
    Batch,
    BatchState,
    IdempotencyKey,
    NewBatch,
    ResultKind,
)

_batches = schema.batches.c
_keys = schema.idempotency_keys.c
_results = schema.results.c


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
        batch = self._build(new, now)
        with self._database.writing() as connection:
            if idempotency is not None:
                values = {
                    "owner": new.owner,
                    "key": idempotency.key,
                    "body_digest": idempotency.body_digest,
                    "batch_id": batch.id,
                    "created_at": now,
                }
                if not insert_if_absent(connection, schema.idempotency_keys, values):
                    return _replayed(connection, new.owner, idempotency), False
            _check_input(connection, new)
            insert_batch(connection, batch)
        return batch, True

    def get(self, owner: str, batch_id: str) -> Batch:
        """Raises NotFoundError."""
        with self._database.reading() as connection:
            return find_batch(connection, batch_id, owner)

    def page(
        self, owner: str, *, limit: int, after: str | None = None
    ) -> tuple[Sequence[Batch], bool]:
        """At most `limit` batches, newest first, after the one called `after`; if there are
        more. Raises InvalidInputError if `after` is not a batch of this owner."""
        query = sa.select(schema.batches).where(_batches.owner == owner)
        with self._database.reading() as connection:
            if after is not None:
                try:
                    last = find_batch(connection, after, owner)
                except NotFoundError as error:
                    raise InvalidInputError("after", str(error)) from None
                here = sa.tuple_(sa.literal(last.created_at), sa.literal(last.id))
                query = query.where(sa.tuple_(_batches.created_at, _batches.id) < here)
            query = query.order_by(_batches.created_at.desc(), _batches.id.desc())
            rows = connection.execute(query.limit(limit + 1)).all()
        return [batch_of(row) for row in rows[:limit]], len(rows) > limit

    def ahead_of(self, batch: Batch) -> Demand:
        """What unfinished batches of all owners that are due before this one still ask for;
        those that are paused ask for nothing."""
        query = (
            sa.select(schema.batches)
            .where(_batches.state == BatchState.IN_PROGRESS.value)
            .where(_batches.expires_at < batch.expires_at, _batches.id != batch.id)
            .where(_batches.pause_requested.is_(False))
        )
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return sum((batch_of(row).open_demand for row in rows), Demand())

    def cancel(self, owner: str, batch_id: str, now: float) -> Batch:
        """Begin to cancel; again is allowed. Raises NotFoundError, ConflictError once the
        batch is finalizing or has ended."""
        with self._database.writing() as connection:
            batch = find_batch(connection, batch_id, owner, lock=True)
            if batch.state is BatchState.CANCELLING:
                return batch
            _refuse_unless_running(batch, "cancelled")
            move(
                connection,
                batch,
                BatchState.CANCELLING,
                now,
                ends_as=BatchState.CANCELLED,
                also={"pause_requested": False},
            )
            return find_batch(connection, batch_id, owner)

    def pause(self, owner: str, batch_id: str) -> Batch:
        """Start no more lines of it. Raises NotFoundError, ConflictError once it is ending."""
        return self._set_paused(owner, batch_id, True)

    def resume(self, owner: str, batch_id: str) -> Batch:
        """Take back `pause`. Raises like `pause`."""
        return self._set_paused(owner, batch_id, False)

    def by_result_file(self, owner: str, file_id: str) -> tuple[Batch, ResultKind]:
        """The batch whose output or error file has this id, whether final or still growing.

        Raises NotFoundError also for a file that has no line yet.
        """
        query = sa.select(schema.batches).where(
            _batches.owner == owner,
            sa.or_(_batches.output_file == file_id, _batches.error_file == file_id),
        )
        if FILE_ID.fullmatch(file_id):
            with self._database.reading() as connection:
                row = connection.execute(query).one_or_none()
            batch = batch_of(row) if row is not None else None
            if batch is not None and batch.output_file_id == file_id:
                return batch, ResultKind.OUTPUT
            if batch is not None and batch.error_file_id == file_id:
                return batch, ResultKind.ERROR
        raise NotFoundError(f"no file with id {file_id[:80]!r}")

    def result_lines(
        self, batch_id: str, kind: ResultKind, start: int, limit: int
    ) -> Sequence[bytes]:
        """Lines `start` (from 0) and on of a file that still grows, in the order of the final
        file, each without its newline. Empty some time after the batch has ended: read the
        file then."""
        query = (
            sa.select(_results.payload)
            .where(_results.batch_id == batch_id, _results.kind == kind.value)
            .where(_results.position >= start, _results.position < start + limit)
            .order_by(_results.position)
        )
        with self._database.reading() as connection:
            return list(connection.execute(query).scalars())

    def forget(self, ended_before: float, limit: int = 100) -> int:
        """Delete batches that ended, and idempotency keys that were made, before that moment;
        how many batches went."""
        ended = sa.func.coalesce(
            _batches.completed_at, _batches.failed_at, _batches.expired_at, _batches.cancelled_at
        )
        old = sa.select(_batches.id).where(ended < ended_before).order_by(ended).limit(limit)
        with self._database.writing() as connection:
            ids = connection.execute(old).scalars().all()
            for table in (schema.lines, schema.results):
                connection.execute(sa.delete(table).where(table.c.batch_id.in_(ids)))
            connection.execute(sa.delete(schema.batches).where(_batches.id.in_(ids)))
            connection.execute(
                sa.delete(schema.idempotency_keys).where(_keys.created_at < ended_before)
            )
        return len(ids)

    def _build(self, new: NewBatch, now: float) -> Batch:
        new_hex = self._database.new_hex
        return Batch(
            id=f"batch_{new_hex()}",
            owner=new.owner,
            endpoint=new.endpoint,
            input_file_id=new.input_file_id,
            completion_window=new.completion_window,
            created_at=now,
            expires_at=now + new.window_s,
            output_file=f"file-{new_hex()}",
            error_file=f"file-{new_hex()}",
            metadata=dict(new.metadata),
            output_expires_after_s=new.output_expires_after_s,
        )

    def _set_paused(self, owner: str, batch_id: str, paused: bool) -> Batch:
        with self._database.writing() as connection:
            batch = find_batch(connection, batch_id, owner, lock=True)
            _refuse_unless_running(batch, "paused or resumed")
            update_batch(connection, batch_id, {"pause_requested": paused})
            return find_batch(connection, batch_id, owner)


def _refuse_unless_running(batch: Batch, verb: str) -> None:
    if batch.state not in (BatchState.VALIDATING, BatchState.IN_PROGRESS):
        raise ConflictError(
            f"batch {batch.id} is {batch.state.value}; only a batch that is validating or "
            f"in_progress can be {verb}"
        )


def _replayed(connection: sa.Connection, owner: str, idempotency: IdempotencyKey) -> Batch:
    row = connection.execute(
        sa.select(_keys.body_digest, _keys.batch_id).where(
            _keys.owner == owner, _keys.key == idempotency.key
        )
    ).one()
    if row.body_digest != idempotency.body_digest:
        raise IdempotencyError(
            f"the idempotency key {idempotency.key[:80]!r} made {row.batch_id} from another "
            "request body; use a new key for a new batch"
        )
    return find_batch(connection, row.batch_id, owner)


def _check_input(connection: sa.Connection, new: NewBatch) -> None:
    """The input file stays until the batch has ended: its row is locked against deletion."""
    row = None
    if FILE_ID.fullmatch(new.input_file_id):
        query = sa.select(schema.files.c.purpose).where(
            schema.files.c.id == new.input_file_id, schema.files.c.owner == new.owner
        )
        row = connection.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise NotFoundError(f"no file with id {new.input_file_id[:80]!r} (input_file_id)")
    if row.purpose != "batch":
        raise InvalidInputError(
            "input_file_id",
            f"file {new.input_file_id} has purpose {row.purpose!r}; upload it with purpose 'batch'",
        )
