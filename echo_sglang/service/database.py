"""Connections, transactions, the schema's version, and what the database's errors mean."""

from __future__ import annotations

from pathlib import Path


class Database:
    """One opened database."""

    @classmethod
    def open(cls, data_dir: Path, url: str | None, *, upgrade: bool, events: bool) -> Database:
        """See `store.open_store`."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back connections and the lock on the data folder."""
        raise NotImplementedError
