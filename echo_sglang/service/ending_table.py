"""How a batch ends: the rest is answered, the files are shown, the rows go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa

from echo_sglang.service import schema
from echo_sglang.service.batch_rows import find_batch, insert_event, move
from echo_sglang.service.database import Database
from echo_sglang.service.file_table import insert_file
from echo_sglang.service.model import (
    FINAL_STATES,
    Batch,
    BatchError,
    BatchState,
    Event,
    FileObject,
    Lease,
    Line,
    LineResult,
    ResultKind,
)
from echo_sglang.service.work_rows import fenced, line_of, parts, record_results

_batches = schema.batches.c
_lines = schema.lines.c
_results = schema.results.c
_FINAL = sorted(state.value for state in FINAL_STATES)
_ROWS_A_PAGE = 200


class EndingTable:
    """The last steps of a batch, each under its lease. See `work_table` for the rules."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def refuse(self, lease: Lease, errors: Sequence[BatchError], now: float) -> Batch:
        """The input file is not acceptable: the batch is failed (cancelled, if that came
        first), its lines are forgotten."""
        with self._database.writing() as connection:
            batch = fenced(connection, lease, BatchState.VALIDATING, BatchState.CANCELLING)
            connection.execute(sa.delete(schema.lines).where(_lines.batch_id == batch.id))
            cancelled = batch.state is BatchState.CANCELLING
            state = BatchState.CANCELLED if cancelled else BatchState.FAILED
            move(connection, batch, state, now, errors=errors)
            self._tell(connection, batch, state, now)
            return find_batch(connection, batch.id, None)

    def expire_unvalidated(self, lease: Lease, now: float) -> Batch:
        """The window ended before the file was validated: there are no lines to answer."""
        with self._database.writing() as connection:
            batch = fenced(connection, lease, BatchState.VALIDATING)
            connection.execute(sa.delete(schema.lines).where(_lines.batch_id == batch.id))
            move(connection, batch, BatchState.EXPIRED, now)
            self._tell(connection, batch, BatchState.EXPIRED, now)
            return find_batch(connection, batch.id, None)

    def finalize(self, lease: Lease, ends_as: BatchState, now: float) -> Batch:
        """No more lines are started: write the files next. Does nothing to a batch that is
        ending already."""
        with self._database.writing() as connection:
            batch = fenced(connection, lease)
            if batch.state is not BatchState.IN_PROGRESS:
                return batch
            if ends_as is BatchState.COMPLETED and batch.counts.open:
                raise AssertionError(f"{batch.counts.open} lines of {batch.id} have no result")
            move(connection, batch, BatchState.FINALIZING, now, ends_as=ends_as)
            return find_batch(connection, batch.id, None)

    def answer_rest(
        self, lease: Lease, answer: Callable[[Line], LineResult], limit: int = 1_000
    ) -> int:
        """Give up to `limit` lines without a result the one that `answer` makes; how many."""
        query = sa.select(schema.lines).where(_lines.batch_id == lease.batch_id)
        with self._database.writing() as connection:
            batch = fenced(connection, lease, BatchState.FINALIZING, BatchState.CANCELLING)
            if not batch.counts.total:
                connection.execute(sa.delete(schema.lines).where(_lines.batch_id == batch.id))
                return 0
            rows = connection.execute(query.order_by(_lines.number).limit(limit)).all()
            record_results(connection, batch, [answer(line_of(row)) for row in rows])
        return len(rows)

    def results(self, batch_id: str, kind: ResultKind) -> Iterator[bytes]:
        """All lines of one file in order, read page by page."""
        position = 0
        while True:
            query = (
                sa.select(_results.payload)
                .where(_results.batch_id == batch_id, _results.kind == kind.value)
                .where(_results.position >= position)
                .order_by(_results.position)
                .limit(_ROWS_A_PAGE)
            )
            with self._database.reading() as connection:
                page = connection.execute(query).scalars().all()
            yield from page
            if len(page) < _ROWS_A_PAGE:
                return
            position += len(page)

    def finish(self, lease: Lease, files: Sequence[FileObject], now: float) -> Batch:
        """The files' bytes are durable: show them and end the batch, at one stroke."""
        with self._database.writing() as connection:
            batch = fenced(connection, lease, BatchState.FINALIZING, BatchState.CANCELLING)
            if batch.counts.open:
                raise AssertionError(f"{batch.counts.open} lines of {batch.id} have no result")
            assert batch.ends_as is not None
            for file in files:
                insert_file(connection, file)
            move(connection, batch, batch.ends_as, now)
            self._tell(connection, batch, batch.ends_as, now)
            return find_batch(connection, batch.id, None)

    def clean(self, limit: int = 2_000) -> int:
        """Delete up to `limit` kept results of batches that have ended; how many went."""
        ended = sa.select(_batches.id).where(_batches.state.in_(_FINAL))
        some = (
            sa.select(_results.batch_id, _results.kind, _results.position)
            .where(_results.batch_id.in_(ended))
            .limit(limit)
        )
        with self._database.reading() as connection:
            if connection.execute(some.limit(1)).first() is None:
                return 0
        with self._database.writing() as connection:
            keys = [tuple(row) for row in connection.execute(some)]
            for part in parts(keys):
                key = sa.tuple_(_results.batch_id, _results.kind, _results.position)
                connection.execute(sa.delete(schema.results).where(key.in_(part)))
        self._database.give_back_pages()
        return len(keys)

    def _tell(self, connection: sa.Connection, batch: Batch, state: BatchState, now: float) -> None:
        if self._database.events:
            event = Event(
                id=f"evt_{self._database.new_hex()}",
                kind=f"batch.{state.value}",
                batch_id=batch.id,
                owner=batch.owner,
                created_at=now,
            )
            insert_event(connection, event)
