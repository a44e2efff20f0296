"""What all steps under a lease have in common, within their transactions."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from echo_sglang.service import schema
from echo_sglang.service.batch_rows import batch_of, batch_row, update_batch
from echo_sglang.service.errors import LeaseLostError
from echo_sglang.service.model import (
    Batch,
    BatchState,
    Lease,
    Line,
    LineResult,
    ResultKind,
)

_batches = schema.batches.c
_lines = schema.lines.c
LINE_FIELDS = tuple(Line.__dataclass_fields__)
_INSERT_LINES = 'INSERT INTO "{}" ("{}") VALUES ({})'.format(
    schema.lines.name,
    '", "'.join((*LINE_FIELDS, "in_flight")),
    ", ".join("?" * (len(LINE_FIELDS) + 1)),
)
_IDS_A_QUERY = 500
_T = TypeVar("_T")


def fenced(connection: sa.Connection, lease: Lease, *states: BatchState) -> Batch:
    """The batch, locked; LeaseLostError unless this lease holds it and it is in one of
    `states` (any, if none are named)."""
    row = batch_row(connection, lease.batch_id, lock=True)
    if row is None or row.lease_fence != lease.fence or row.lease_owner is None:
        raise LeaseLostError(f"another runner has taken {lease.batch_id}, or it was deleted")
    batch = batch_of(row)
    if states and batch.state not in states:
        raise LeaseLostError(f"{batch.id} is {batch.state.value} already")
    return batch


def insert_lines(connection: sa.Connection, lines: Sequence[Line]) -> None:
    """Add waiting lines. For SQLite straight through the driver: SQLAlchemy would take as long
    over the parameters of each row as SQLite over the row."""
    values = operator.attrgetter(*LINE_FIELDS)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_INSERT_LINES, [(*values(line), 0) for line in lines])
    else:
        names = (*LINE_FIELDS, "in_flight")
        rows = [dict(zip(names, (*values(line), False), strict=True)) for line in lines]
        connection.execute(sa.insert(schema.lines), rows)


def put_back_lines(
    connection: sa.Connection, batch_id: str, numbers: Sequence[int] | None, crashed: bool
) -> None:
    """These lines in flight, or all for None, wait again; crashed: one crash more each."""
    update = sa.update(schema.lines).where(_lines.batch_id == batch_id, _lines.in_flight.is_(True))
    if numbers is not None:
        update = update.where(_lines.number.in_(numbers))
    connection.execute(update.values(in_flight=False, crashes=_lines.crashes + int(crashed)))


def record_results(connection: sa.Connection, batch: Batch, results: Sequence[LineResult]) -> None:
    """Move lines of a locked batch from `lines` to `results`; those no longer open stay."""
    first: dict[int, LineResult] = {}
    for result in results:
        first.setdefault(result.number, result)
    open_numbers: set[int] = set()
    for part in parts(sorted(first)):
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


def line_of(row: sa.Row[Any]) -> Line:
    """The line that a row of `schema.lines` is."""
    return Line(**{name: row._mapping[name] for name in LINE_FIELDS})


def parts(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """The items in parts that fit into one statement."""
    for start in range(0, len(items), _IDS_A_QUERY):
        yield items[start : start + _IDS_A_QUERY]
