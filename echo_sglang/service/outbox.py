"""Webhooks to send: kept in the transaction that ended the batch, sent at least once."""

from __future__ import annotations

from collections.abc import Sequence

from echo_sglang.service.database import Database
from echo_sglang.service.model import Event


class Outbox:
    """Webhooks to send."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, now: float, hold_s: float, limit: int = 10) -> Sequence[Event]:
        """Events that are due, each for this caller alone until `now + hold_s`."""
        raise NotImplementedError

    def sent(self, event_id: str) -> None:
        """It was delivered: forget it."""
        raise NotImplementedError

    def retry_at(self, event_id: str, when: float) -> None:
        """It failed; it is due again at `when`, with one attempt more."""
        raise NotImplementedError

    def give_up(self, event_id: str) -> None:
        """It failed too often: forget it."""
        raise NotImplementedError
