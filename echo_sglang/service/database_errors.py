"""What the database drivers' errors mean to us."""

from __future__ import annotations

import sqlite3

from sqlalchemy.exc import DBAPIError

from echo_sglang.service.errors import (
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreIOError,
)

_SQLITE: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreBusyError, "another process keeps it locked; end that process"),
    sqlite3.SQLITE_LOCKED: (StoreBusyError, "another connection keeps it locked"),
    sqlite3.SQLITE_FULL: (StoreFullError, "no space left on its disk; free some"),
    sqlite3.SQLITE_IOERR: (StoreIOError, "the disk fails; look at the kernel's log, then restart"),
    sqlite3.SQLITE_CANTOPEN: (StoreIOError, "its file cannot be opened; check folder and rights"),
    sqlite3.SQLITE_READONLY: (StoreIOError, "its file cannot be written; check its rights"),
    sqlite3.SQLITE_CORRUPT: (StoreCorruptError, "its file is damaged; restore a copy"),
    sqlite3.SQLITE_NOTADB: (StoreCorruptError, "its file is no SQLite database; restore a copy"),
}

_POSTGRES: dict[str, tuple[type[StoreError], str]] = {
    "08": (StoreBusyError, "the connection was lost"),
    "40": (StoreBusyError, "transactions collided"),
    "53100": (StoreFullError, "no space left on its disk; free some"),
    "53": (StoreBusyError, "the server is out of connections or memory"),
    "55": (StoreBusyError, "another session keeps it locked"),
    "57": (StoreBusyError, "the server ends sessions"),
    "58": (StoreIOError, "the server's disk fails; look at its log"),
    "XX": (StoreCorruptError, "the server says its data is damaged; look at its log"),
}


def translate(error: DBAPIError, where: str) -> StoreError:
    """The error to raise instead of the driver's, with what to do. where: names the store."""
    kind, advice = _meaning(error)
    return kind(f"the batch store {where}: {advice} ({str(error.orig).strip()})")


def _meaning(error: DBAPIError) -> tuple[type[StoreError], str]:
    driver = error.orig
    if isinstance(driver, sqlite3.Error):
        code = getattr(driver, "sqlite_errorcode", None)
        return _SQLITE.get((code or 0) & 0xFF, (StoreError, "the database refused"))
    state = getattr(driver, "sqlstate", None) or ("08" if error.connection_invalidated else "")
    if not state and "connect" in str(driver):
        state = "08"
    for prefix in (state, state[:2]):
        if prefix in _POSTGRES:
            return _POSTGRES[prefix]
    return StoreError, "the database refused"
