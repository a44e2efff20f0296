"""Connections, transactions, the schema's version."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from echo_sglang.service.database_errors import translate
from echo_sglang.service.errors import (
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreInUseError,
    StoreIOError,
    StoreSchemaError,
)

SQLITE_NAME = "store.sqlite3"
SQLITE_BUSY_MS = 5_000
MIGRATIONS = "echo_sglang.service:migrations"
_SQLITE_CACHE_KIB = 16_000
"""Holds the pages that a validation's write changes; SQLite's 2 MB spill each several times."""
_VACUUM_PAGES = 4_000
_MIGRATION_LOCK = 0x6563686F
"""PostgreSQL's advisory lock while a server creates or upgrades the schema ("echo")."""


class Database:
    """One opened database. See `store.open_store` for events and new_hex."""

    def __init__(
        self,
        engine: sa.Engine,
        where: str,
        lock: int,
        *,
        events: bool,
        new_hex: Callable[[], str],
    ) -> None:
        self.engine = engine
        self.events = events
        self.new_hex = new_hex
        self._where = where
        self._folder_lock: int | None = lock
        self._broken: StoreError | None = None
        self._writing = threading.Lock()

    @classmethod
    def open(
        cls,
        data_dir: Path,
        url: str | None,
        *,
        upgrade: bool,
        events: bool,
        new_hex: Callable[[], str],
    ) -> Database:
        """See `store.open_store`."""
        lock = _lock_folder(data_dir)
        try:
            target = sa.make_url(url) if url else _sqlite_url(data_dir)
            engine = cls.make_engine(target)
            where = target.render_as_string(hide_password=True)
            database = cls(engine, where, lock, events=events, new_hex=new_hex)
            database._check_health()
            database._check_schema(upgrade)
        except sa.exc.ArgumentError as error:
            os.close(lock)
            raise StoreError(
                f"not a database URL: {error}; like postgresql+psycopg://user@host/name"
            ) from None
        except BaseException:
            os.close(lock)
            raise
        return database

    @classmethod
    def make_engine(cls, target: sa.URL) -> sa.Engine:
        """Connections to this database, set up as they must be."""
        if target.get_backend_name() != "sqlite":
            return sa.create_engine(target, pool_pre_ping=True)
        engine = sa.create_engine(target)
        _prepare_sqlite(engine)
        return engine

    @property
    def is_sqlite(self) -> bool:
        """True for the database in the data folder."""
        return self.engine.dialect.name == "sqlite"

    def close(self) -> None:
        """Give back connections and the lock on the data folder."""
        self.engine.dispose()
        if self._folder_lock is not None:
            os.close(self._folder_lock)
            self._folder_lock = None

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction: committed, and durable, when the block ends without an error.

        Raises what `errors` lists under StoreError. After a StoreIOError or StoreCorruptError
        nothing is written any more: what a failed fsync left behind is not known.
        """
        if self._broken is not None:
            raise self._broken
        guard = self._writing if self.is_sqlite else contextlib.nullcontext()
        with guard, self._translated(), self.engine.connect() as connection:
            connection = connection.execution_options(echo_writes=True)
            with connection.begin():
                yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent view. Raises like `writing`."""
        with self._translated(), self.engine.connect() as connection, connection.begin():
            yield connection

    def give_back_pages(self) -> None:
        """Let SQLite return free pages to the disk, a bounded number; PostgreSQL does so itself."""
        if not self.is_sqlite:
            return
        with self._writing, self._translated(), self.engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, sqlite3.Connection)
            # Each step of this statement frees one page; only executescript takes them all.
            try:
                driver.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
            except sqlite3.Error as error:
                raise DBAPIError("PRAGMA incremental_vacuum", None, error) from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            meaning = translate(error, self._where)
            if isinstance(meaning, StoreIOError | StoreCorruptError):
                self._broken = meaning
            raise meaning from error

    def _check_health(self) -> None:
        if not self.is_sqlite:
            return
        with self.writing():
            pass
        with self.reading() as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if found != "ok":
            raise StoreCorruptError(
                f"the batch store {self._where} is damaged ({found}); restore a copy, or move "
                "it away to begin with an empty one"
            )

    def _check_schema(self, upgrade: bool) -> None:
        with self.writing() as connection:
            if not self.is_sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            found = MigrationContext.configure(connection).get_current_revision()
            scripts = _migrations()
            newest = scripts.get_current_head()
            if found == newest:
                return
            if found is not None:
                self._refuse_schema(scripts, found, upgrade)
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _refuse_schema(self, scripts: ScriptDirectory, found: str, upgrade: bool) -> None:
        try:
            scripts.get_revision(found)
        except CommandError:
            raise StoreSchemaError(
                f"the batch store {self._where} has schema {found}, newer than this release's "
                f"{scripts.get_current_head()}; run the release that made it"
            ) from None
        if not upgrade:
            raise StoreSchemaError(
                f"the batch store {self._where} has the old schema {found}, this release's is "
                f"{scripts.get_current_head()}; keep a copy, then start once with "
                "--echo-store-upgrade"
            )


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    return config


@functools.cache
def _migrations() -> ScriptDirectory:
    return ScriptDirectory.from_config(_alembic_config())


def _lock_folder(data_dir: Path) -> int:
    """A descriptor that keeps other servers out of the folder until it is closed."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreIOError(f"the data folder {data_dir} cannot be used: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise StoreInUseError(
            f"the data folder {data_dir} is in use by the server with process id {holder}; "
            "stop it, or give this one another folder"
        ) from None
    with contextlib.suppress(OSError):  # a full disk: the number is only for the message
        os.ftruncate(lock, 0)
        os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    return lock


def _sqlite_url(data_dir: Path) -> sa.URL:
    return sa.URL.create("sqlite", database=str(data_dir / SQLITE_NAME))


def _prepare_sqlite(engine: sa.Engine) -> None:
    """Set what every connection needs and take transactions out of the driver's hands."""

    @sa.event.listens_for(engine, "connect")
    def configure(driver_connection: Any, _record: object) -> None:
        driver_connection.isolation_level = None
        cursor = driver_connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_MS}")
        cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
        mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StoreBusyError(
                f"SQLite cannot use its write-ahead log here (mode {mode!r}): put the data "
                "folder on a local disk"
            )
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute(f"PRAGMA cache_size=-{_SQLITE_CACHE_KIB}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("echo_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
