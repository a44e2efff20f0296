"""Between rows of `batches` and the values of the model, and what all table groups share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from echo_sglang.service import schema
from echo_sglang.service.errors import NotFoundError
from echo_sglang.service.forecast import Demand
from echo_sglang.service.model import (
    BATCH_ID,
    TRANSITIONS,
    Batch,
    BatchError,
    BatchState,
    Counts,
    Event,
    Usage,
)

_batches = schema.batches.c

_PLAIN = (
    "id",
    "owner",
    "endpoint",
    "input_file_id",
    "completion_window",
    "created_at",
    "expires_at",
    "output_file",
    "error_file",
    "model",
    "metadata",
    "output_expires_after_s",
    "pause_requested",
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)

_BY_ID = sa.select(schema.batches).where(_batches.id == sa.bindparam("batch_id"))
_BY_ID_LOCKED = _BY_ID.with_for_update()


def batch_of(row: sa.Row[Any]) -> Batch:
    """The batch that a row of `schema.batches` is."""
    values = row._mapping
    return Batch(
        **{name: values[name] for name in _PLAIN},
        state=BatchState(values["state"]),
        ends_as=BatchState(values["ends_as"]) if values["ends_as"] else None,
        counts=Counts(
            total=values["total"], completed=values["completed"], failed=values["failed"]
        ),
        usage=Usage(
            input_tokens=values["input_tokens"],
            output_tokens=values["output_tokens"],
            cached_tokens=values["cached_tokens"],
        ),
        demand=Demand(prompt_bytes=values["prompt_bytes"], output_tokens=values["allowed_tokens"]),
        errors=tuple(BatchError(**error) for error in values["errors"]),
    )


def insert_batch(connection: sa.Connection, batch: Batch) -> None:
    """Add the row within the caller's transaction; without a lease."""
    values = {name: getattr(batch, name) for name in _PLAIN}
    values |= asdict(batch.counts) | asdict(batch.usage)
    values |= {"metadata": dict(batch.metadata), "errors": [], "state": batch.state.value}
    connection.execute(sa.insert(schema.batches).values(values | {"lease_fence": 0}))


def batch_row(
    connection: sa.Connection, batch_id: str, *, lock: bool = False
) -> sa.Row[Any] | None:
    """The row of a batch, if there is one. lock: see `find_batch`."""
    query = _BY_ID_LOCKED if lock else _BY_ID
    return connection.execute(query, {"batch_id": batch_id}).one_or_none()


def find_batch(
    connection: sa.Connection, batch_id: str, owner: str | None, *, lock: bool = False
) -> Batch:
    """The batch as it is; owner None for any. lock: nobody else changes it until the
    transaction ends. Raises NotFoundError."""
    row = batch_row(connection, batch_id, lock=lock) if BATCH_ID.fullmatch(batch_id) else None
    if row is not None and owner is not None and row.owner != owner:
        row = None
    if row is None:
        raise NotFoundError(f"no batch with id {batch_id[:80]!r}")
    return batch_of(row)


def move(
    connection: sa.Connection,
    batch: Batch,
    state: BatchState,
    now: float,
    *,
    ends_as: BatchState | None = None,
    errors: Sequence[BatchError] = (),
    also: Mapping[str, Any] | None = None,
) -> None:
    """Change the state of a locked batch and stamp the time. The step must be one of
    `TRANSITIONS`: anything else is a bug of the caller."""
    if state not in TRANSITIONS[batch.state]:
        raise AssertionError(f"batch {batch.id} cannot go from {batch.state} to {state}")
    values: dict[str, Any] = {"state": state.value, f"{state.value}_at": now}
    if ends_as is not None:
        values["ends_as"] = ends_as.value
    if errors:
        values["errors"] = [asdict(error) for error in errors]
    if state.is_final:
        values |= {"lease_owner": None, "lease_until": None, "pause_requested": False}
    update_batch(connection, batch.id, {**values, **(also or {})})


def update_batch(connection: sa.Connection, batch_id: str, values: Mapping[str, Any]) -> None:
    """Set columns of one batch within the caller's transaction."""
    connection.execute(
        sa.update(schema.batches).where(_batches.id == batch_id).values(dict(values))
    )


def insert_event(connection: sa.Connection, event: Event) -> None:
    """Add a webhook to send, due at once, within the caller's transaction."""
    values = asdict(event) | {"due_at": event.created_at}
    connection.execute(sa.insert(schema.events).values(values))


def insert_if_absent(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
    """Insert unless the primary key is taken; True if it was free."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).values(dict(values)).on_conflict_do_nothing()
    return connection.execute(statement.returning(sa.literal(1))).first() is not None
