"""Webhooks to send: kept in the transaction that ended the batch, sent at least once."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from echo_sglang.service import schema
from echo_sglang.service.database import Database
from echo_sglang.service.model import Event

_events = schema.events.c


class Outbox:
    """Webhooks to send."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, now: float, hold_s: float, limit: int = 10) -> Sequence[Event]:
        """Events that are due, each for this caller alone until `now + hold_s`."""
        due = (
            sa.select(schema.events)
            .where(_events.due_at <= now)
            .order_by(_events.due_at, _events.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        with self._database.writing() as connection:
            rows = connection.execute(due).all()
            self._set_due(connection, [row.id for row in rows], now + hold_s)
        return [
            Event(**{name: row._mapping[name] for name in Event.__dataclass_fields__})
            for row in rows
        ]

    def sent(self, event_id: str) -> None:
        """It was delivered: forget it."""
        self._remove(event_id)

    def retry_at(self, event_id: str, when: float) -> None:
        """It failed; it is due again at `when`, with one attempt more."""
        with self._database.writing() as connection:
            self._set_due(connection, [event_id], when, more_attempts=1)

    def give_up(self, event_id: str) -> None:
        """It failed too often: forget it."""
        self._remove(event_id)

    def _remove(self, event_id: str) -> None:
        with self._database.writing() as connection:
            connection.execute(sa.delete(schema.events).where(_events.id == event_id))

    @staticmethod
    def _set_due(
        connection: sa.Connection, ids: Sequence[str], when: float, more_attempts: int = 0
    ) -> None:
        connection.execute(
            sa.update(schema.events)
            .where(_events.id.in_(ids))
            .values(due_at=when, attempts=_events.attempts + more_attempts)
        )
