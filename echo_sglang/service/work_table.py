"""What a runner does with batches, each step under a lease.

Every write first locks the batch's row and compares the lease's fence, so a runner that was
paused and lost its batch to another one changes nothing any more. Every step can be repeated:
after a StoreBusyError or StoreFullError simply call it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from echo_sglang.service import schema
from echo_sglang.service.batch_rows import (
    batch_of,
    find_batch,
    move,
    update_batch,
)
from echo_sglang.service.database import Database
from echo_sglang.service.errors import LeaseLostError
from echo_sglang.service.forecast import NO_DEMAND, Demand
from echo_sglang.service.model import (
    FINAL_STATES,
    Batch,
    BatchState,
    Lease,
    Line,
    LineResult,
)
from echo_sglang.service.work_rows import (
    fenced,
    insert_lines,
    line_of,
    parts,
    put_back_lines,
    record_results,
)

_batches = schema.batches.c
_lines = schema.lines.c
_UNFINISHED = sorted(state.value for state in BatchState if state not in FINAL_STATES)


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
        self, holder: str, now: float, lease_s: float, limit: int, *, blame_own: bool = True
    ) -> Sequence[tuple[Lease, Batch]]:
        """Take up to `limit` unfinished batches that nobody works on, soonest deadline first.

        Lines that their former runner had in flight wait again, and count this as a crash they
        were in flight at; those of this holder's own only with `blame_own`.
        """
        free = (
            sa.select(schema.batches)
            .where(_batches.state.in_(_UNFINISHED))
            .where(sa.or_(_batches.lease_until.is_(None), _batches.lease_until <= now))
            .order_by(_batches.expires_at, _batches.id)
            .limit(limit)
        )
        taken: list[tuple[Lease, Batch]] = []
        with self._database.reading() as connection:
            if connection.execute(free).first() is None:
                return taken
        with self._database.writing() as connection:
            for row in connection.execute(free.with_for_update(skip_locked=True)).all():
                fence = row.lease_fence + 1
                lease = Lease(batch_id=row.id, fence=fence, until=now + lease_s)
                update_batch(
                    connection,
                    row.id,
                    {"lease_owner": holder, "lease_fence": fence, "lease_until": lease.until},
                )
                crashed = blame_own or row.lease_owner != holder
                put_back_lines(connection, row.id, None, crashed)
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
            fenced(connection, lease)
            put_back_lines(connection, lease.batch_id, None, crashed=False)
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
            fenced(connection, lease, BatchState.VALIDATING, BatchState.CANCELLING)
            connection.execute(sa.delete(schema.lines).where(_lines.batch_id == lease.batch_id))

    def add_lines(self, lease: Lease, lines: Sequence[Line]) -> None:
        """Keep validated lines; they count only after `start`."""
        with self._database.writing() as connection:
            fenced(connection, lease, BatchState.VALIDATING, BatchState.CANCELLING)
            if lines:
                insert_lines(connection, lines)

    def start(self, lease: Lease, model: str, now: float, demand: Demand = NO_DEMAND) -> Batch:
        """All lines are there: the batch is accepted and in progress. A cancel that came
        meanwhile wins: the lines stay, to be answered as cancelled."""
        with self._database.writing() as connection:
            batch = fenced(connection, lease, BatchState.VALIDATING, BatchState.CANCELLING)
            total = connection.execute(
                sa.select(sa.func.count()).where(_lines.batch_id == batch.id)
            ).scalar_one()
            accepted = {
                "total": total,
                "model": model,
                "prompt_bytes": demand.prompt_bytes,
                "allowed_tokens": demand.output_tokens,
            }
            if batch.state is BatchState.CANCELLING:
                update_batch(connection, batch.id, accepted)
            else:
                move(connection, batch, BatchState.IN_PROGRESS, now, also=accepted)
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
            return [line_of(row) for row in connection.execute(query)]

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
            return [line_of(row) for row in connection.execute(query)]

    def dispatch(self, lease: Lease, numbers: Sequence[int]) -> frozenset[int]:
        """Mark lines as in flight before the engine sees them; which ones were waiting.

        Empty if the batch is paused or no longer in progress.
        """
        marked: set[int] = set()
        with self._database.writing() as connection:
            batch = fenced(connection, lease)
            if batch.state is not BatchState.IN_PROGRESS or batch.pause_requested:
                return frozenset()
            for part in parts(numbers):
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
            fenced(connection, lease)
            for part in parts(numbers):
                put_back_lines(connection, lease.batch_id, part, crashed)

    def record(self, lease: Lease, results: Sequence[LineResult]) -> Batch:
        """Keep results. A line that has one already keeps the first."""
        with self._database.writing() as connection:
            batch = fenced(connection, lease)
            record_results(connection, batch, results)
            return find_batch(connection, batch.id, None)
