"""What a runner does with batches, each step under a lease.

Every write first locks the batch's row and compares the lease's fence, so a runner that was
paused and lost its batch to another one changes nothing any more. Every step can be repeated:
after a StoreBusyError or StoreFullError simply call it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from echo_sglang.service import schema
from echo_sglang.service.batch_rows import (
    batch_of,
    find_batch,
    insert_event,
    move,
    update_batch,
)
from echo_sglang.service.database import Database
from echo_sglang.service.errors import LeaseLostError
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

_batches = schema.batches.c
_lines = schema.lines.c
_results = schema.results.c
_LINE_FIELDS = tuple(name for name in Line.__dataclass_fields__)
_UNFINISHED = sorted(state.value for state in BatchState if state not in FINAL_STATES)
_IDS_A_QUERY = 500
_ROWS_A_PAGE = 200
_T = TypeVar("_T")


class WorkTable:
    """What a runner does with batches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Leases

    def forget_leases(self, holder: str) -> None:
        """Drop the leases of an earlier life of this runner. SQLite's folder lock proves that
        no other runner lives, so there all leases go."""
        update = sa.update(schema.batches).values(lease_until=None)
        if not self._database.is_sqlite:
            update = update.where(_batches.lease_owner == holder)
        with self._database.writing() as connection:
            connection.execute(update)

    def acquire(
        self, holder: str, now: float, lease_s: float, limit: int, *, crashed: bool = True
    ) -> Sequence[tuple[Lease, Batch]]:
        """Take up to `limit` unfinished batches that nobody works on, soonest deadline first.

        Lines that their former runner had in flight wait again; crashed: each counts this as
        a crash it was in flight at.
        """
        free = (
            sa.select(schema.batches)
            .where(_batches.state.in_(_UNFINISHED))
            .where(sa.or_(_batches.lease_until.is_(None), _batches.lease_until <= now))
            .order_by(_batches.expires_at, _batches.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        taken = []
        with self._database.writing() as connection:
            for row in connection.execute(free).all():
                fence = row.lease_fence + 1
                lease = Lease(batch_id=row.id, fence=fence, until=now + lease_s)
                update_batch(
                    connection,
                    row.id,
                    {"lease_owner": holder, "lease_fence": fence, "lease_until": lease.until},
                )
                _put_back(connection, row.id, None, crashed)
                taken.append((lease, batch_of(row)))
        return taken

    def renew(self, leases: Iterable[Lease], now: float, lease_s: float) -> Sequence[Lease]:
        """Those that are still held, extended; the others are lost."""
        held = []
        with self._database.writing() as connection:
            for lease in sorted(leases, key=lambda each: each.batch_id):
                done = connection.execute(
                    sa.update(schema.batches)
                    .where(_batches.id == lease.batch_id, _batches.lease_fence == lease.fence)
                    .where(_batches.lease_owner.is_not(None))
                    .values(lease_until=now + lease_s)
                )
                if done.rowcount:
                    held.append(
                        Lease(batch_id=lease.batch_id, fence=lease.fence, until=now + lease_s)
                    )
        return held

    def release(self, lease: Lease) -> None:
        """Give a batch back in good order: what is in flight waits again, without blame."""
        with self._database.writing() as connection:
            _fenced(connection, lease)
            _put_back(connection, lease.batch_id, None, crashed=False)
            update_batch(connection, lease.batch_id, {"lease_owner": None, "lease_until": None})

    def look(self, leases: Iterable[Lease]) -> dict[str, Batch]:
        """The present state of these batches, by id; those whose lease is lost are absent."""
        fences = {lease.batch_id: lease.fence for lease in leases}
        query = sa.select(schema.batches).where(_batches.id.in_(list(fences)))
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return {row.id: batch_of(row) for row in rows if row.lease_fence == fences[row.id]}

    def held(self, lease: Lease) -> Batch:
        """The batch as it is now. Raises LeaseLostError."""
        batch = self.look([lease]).get(lease.batch_id)
        if batch is None:
            raise LeaseLostError(f"another runner has taken {lease.batch_id}, or it was deleted")
        return batch

    # Validation

    def begin_lines(self, lease: Lease) -> None:
        """Forget what an interrupted validation left."""
        with self._database.writing() as connection:
            _fenced(connection, lease, BatchState.VALIDATING, BatchState.CANCELLING)
            connection.execute(sa.delete(schema.lines).where(_lines.batch_id == lease.batch_id))

    def add_lines(self, lease: Lease, lines: Sequence[Line]) -> None:
        """Keep validated lines; they count only after `start`."""
        rows = [
            {name: getattr(line, name) for name in _LINE_FIELDS} | {"in_flight": False}
            for line in lines
        ]
        with self._database.writing() as connection:
            _fenced(connection, lease, BatchState.VALIDATING, BatchState.CANCELLING)
            connection.execute(sa.insert(schema.lines), rows)

    def start(self, lease: Lease, model: str, now: float) -> Batch:
        """All lines are there: the batch is accepted and in progress. A cancel that came
        meanwhile wins: the lines stay, to be answered as cancelled."""
        with self._database.writing() as connection:
            batch = _fenced(connection, lease, BatchState.VALIDATING, BatchState.CANCELLING)
            total = connection.execute(
                sa.select(sa.func.count()).where(_lines.batch_id == batch.id)
            ).scalar_one()
            accepted = {"total": total, "model": model}
            if batch.state is BatchState.CANCELLING:
                update_batch(connection, batch.id, accepted)
            else:
                move(connection, batch, BatchState.IN_PROGRESS, now, also=accepted)
            return find_batch(connection, batch.id, None)

    def refuse(self, lease: Lease, errors: Sequence[BatchError], now: float) -> Batch:
        """The input file is not acceptable: the batch is failed (cancelled, if that came
        first), its lines are forgotten."""
        with self._database.writing() as connection:
            batch = _fenced(connection, lease, BatchState.VALIDATING, BatchState.CANCELLING)
            connection.execute(sa.delete(schema.lines).where(_lines.batch_id == batch.id))
            cancelled = batch.state is BatchState.CANCELLING
            state = BatchState.CANCELLED if cancelled else BatchState.FAILED
            move(connection, batch, state, now, errors=errors)
            self._tell(connection, batch, state, now)
            return find_batch(connection, batch.id, None)

    def expire_unvalidated(self, lease: Lease, now: float) -> Batch:
        """The window ended before the file was validated: there are no lines to answer."""
        with self._database.writing() as connection:
            batch = _fenced(connection, lease, BatchState.VALIDATING)
            connection.execute(sa.delete(schema.lines).where(_lines.batch_id == batch.id))
            move(connection, batch, BatchState.EXPIRED, now)
            self._tell(connection, batch, BatchState.EXPIRED, now)
            return find_batch(connection, batch.id, None)

    # Lines

    def waiting(
        self,
        batch_id: str,
        limit: int,
        *,
        low: bytes = b"",
        high: bytes | None = None,
        after: tuple[bytes, int] | None = None,
        max_crashes: int | None = None,
    ) -> Sequence[Line]:
        """Lines not in flight in the order of (order_key, number).

        low, high: only keys with low <= key < high. after: only behind this key and number.
        max_crashes: only lines with at most so many crashes.
        """
        query = sa.select(schema.lines).where(
            _lines.batch_id == batch_id, _lines.in_flight.is_(False), _lines.order_key >= low
        )
        if high is not None:
            query = query.where(_lines.order_key < high)
        if after is not None:
            place = sa.tuple_(_lines.order_key, _lines.number)
            query = query.where(place > sa.tuple_(sa.literal(after[0]), sa.literal(after[1])))
        if max_crashes is not None:
            query = query.where(_lines.crashes <= max_crashes)
        query = query.order_by(_lines.order_key, _lines.number).limit(limit)
        with self._database.reading() as connection:
            return [_line(row) for row in connection.execute(query)]

    def suspects(self, batch_id: str, min_crashes: int, limit: int) -> Sequence[Line]:
        """Waiting lines that were in flight at `min_crashes` crashes or more."""
        query = (
            sa.select(schema.lines)
            .where(_lines.batch_id == batch_id, _lines.in_flight.is_(False))
            .where(_lines.crashes >= min_crashes)
            .order_by(_lines.crashes.desc(), _lines.number)
            .limit(limit)
        )
        with self._database.reading() as connection:
            return [_line(row) for row in connection.execute(query)]

    def dispatch(self, lease: Lease, numbers: Sequence[int]) -> frozenset[int]:
        """Mark lines as in flight before the engine sees them; which ones were waiting.

        None if the batch is paused or no longer in progress.
        """
        marked: set[int] = set()
        with self._database.writing() as connection:
            batch = _fenced(connection, lease)
            if batch.state is not BatchState.IN_PROGRESS or batch.pause_requested:
                return frozenset()
            for part in _parts(numbers):
                marked |= set(
                    connection.execute(
                        sa.update(schema.lines)
                        .where(_lines.batch_id == batch.id, _lines.number.in_(part))
                        .where(_lines.in_flight.is_(False))
                        .values(in_flight=True)
                        .returning(_lines.number)
                    ).scalars()
                )
        return frozenset(marked)

    def put_back(self, lease: Lease, numbers: Sequence[int], *, crashed: bool) -> None:
        """Lines in flight wait again; crashed: the engine died with them."""
        with self._database.writing() as connection:
            _fenced(connection, lease)
            for part in _parts(numbers):
                _put_back(connection, lease.batch_id, part, crashed)

    def record(self, lease: Lease, results: Sequence[LineResult]) -> Batch:
        """Keep results. A line that has one already keeps the first."""
        with self._database.writing() as connection:
            batch = _fenced(connection, lease)
            _record(connection, batch, results)
            return find_batch(connection, batch.id, None)

    # The end

    def finalize(self, lease: Lease, ends_as: BatchState, now: float) -> Batch:
        """No more lines are started: write the files next. Does nothing to a batch that is
        ending already."""
        with self._database.writing() as connection:
            batch = _fenced(connection, lease)
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
            batch = _fenced(connection, lease, BatchState.FINALIZING, BatchState.CANCELLING)
            if not batch.counts.total:
                connection.execute(sa.delete(schema.lines).where(_lines.batch_id == batch.id))
                return 0
            rows = connection.execute(query.order_by(_lines.number).limit(limit)).all()
            _record(connection, batch, [answer(_line(row)) for row in rows])
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
            batch = _fenced(connection, lease, BatchState.FINALIZING, BatchState.CANCELLING)
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
        ended = sa.select(_batches.id).where(_batches.state.not_in(_UNFINISHED))
        some = (
            sa.select(_results.batch_id, _results.kind, _results.position)
            .where(_results.batch_id.in_(ended))
            .limit(limit)
        )
        with self._database.writing() as connection:
            keys = [tuple(row) for row in connection.execute(some)]
            for part in _parts(keys):
                key = sa.tuple_(_results.batch_id, _results.kind, _results.position)
                connection.execute(sa.delete(schema.results).where(key.in_(part)))
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


def _fenced(connection: sa.Connection, lease: Lease, *states: BatchState) -> Batch:
    """The batch, locked; LeaseLostError unless this lease holds it and it is in one of
    `states` (any, if none are named)."""
    query = sa.select(schema.batches).where(_batches.id == lease.batch_id).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None or row.lease_fence != lease.fence or row.lease_owner is None:
        raise LeaseLostError(f"another runner has taken {lease.batch_id}, or it was deleted")
    batch = batch_of(row)
    if states and batch.state not in states:
        raise LeaseLostError(f"{batch.id} is {batch.state.value} already")
    return batch


def _put_back(
    connection: sa.Connection, batch_id: str, numbers: Sequence[int] | None, crashed: bool
) -> None:
    update = sa.update(schema.lines).where(_lines.batch_id == batch_id, _lines.in_flight.is_(True))
    if numbers is not None:
        update = update.where(_lines.number.in_(numbers))
    connection.execute(update.values(in_flight=False, crashes=_lines.crashes + int(crashed)))


def _record(connection: sa.Connection, batch: Batch, results: Sequence[LineResult]) -> None:
    first = {result.number: result for result in reversed(results)}
    open_numbers: set[int] = set()
    for part in _parts(sorted(first)):
        open_numbers |= set(
            connection.execute(
                sa.delete(schema.lines)
                .where(_lines.batch_id == batch.id, _lines.number.in_(part))
                .returning(_lines.number)
            ).scalars()
        )
    kept = [result for number, result in first.items() if number in open_numbers]
    if not kept:
        return
    positions = {
        ResultKind.OUTPUT: batch.counts.completed,
        ResultKind.ERROR: batch.counts.failed,
    }
    rows = []
    for result in kept:
        rows.append(
            {
                "batch_id": batch.id,
                "kind": result.kind.value,
                "position": positions[result.kind],
                "number": result.number,
                "payload": result.payload,
            }
        )
        positions[result.kind] += 1
    connection.execute(sa.insert(schema.results), rows)
    values: dict[str, Any] = {
        "completed": positions[ResultKind.OUTPUT],
        "failed": positions[ResultKind.ERROR],
    }
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        added = sum(getattr(result.usage, name) for result in kept)
        values[name] = getattr(batch.usage, name) + added
    update_batch(connection, batch.id, values)


def _line(row: sa.Row[Any]) -> Line:
    return Line(**{name: row._mapping[name] for name in _LINE_FIELDS})


def _parts(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), _IDS_A_QUERY):
        yield items[start : start + _IDS_A_QUERY]
