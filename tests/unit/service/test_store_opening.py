"""What may be wrong with a store, and that it is refused loudly."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from echo_sglang.service import database, schema
from echo_sglang.service.errors import (
    StoreBusyError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreInUseError,
    StoreIOError,
    StoreSchemaError,
)
from echo_sglang.service.model import BatchState
from echo_sglang.service.store import Store, open_store, server_name
from tests.unit.service.store_kit import add_file, result, started


def test_what_was_acknowledged_is_there_after_opening_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    file = add_file(store)
    store.close()
    store = open_store(tmp_path)
    assert store.files.get("", file.id) == file
    store.close()


def test_sqlite_keeps_what_it_acknowledges_through_a_power_loss(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with store.database.writing() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2  # FULL
    store.close()


def test_two_servers_cannot_run_on_one_data_folder(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(StoreInUseError, match=r"process id \d+; stop it"):
        open_store(tmp_path)
    store.close()
    open_store(tmp_path).close()


def test_a_locked_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(tmp_path).close()
    monkeypatch.setattr(database, "SQLITE_BUSY_MS", 10)
    other = sqlite3.connect(tmp_path / database.SQLITE_NAME)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreBusyError, match="another process keeps it locked"):
        open_store(tmp_path)
    other.close()
    open_store(tmp_path).close()


def test_a_corrupt_page_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    started(store, 50)
    store.close()
    path = tmp_path / database.SQLITE_NAME
    data = bytearray(path.read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 200] = b"\xa5" * 200
    path.write_bytes(data)
    with pytest.raises(StoreCorruptError, match="restore a copy"):
        open_store(tmp_path)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / database.SQLITE_NAME
    path.write_bytes(b"my novel " * 1000)
    with pytest.raises(StoreCorruptError, match="no SQLite database"):
        open_store(tmp_path)
    assert path.read_bytes() == b"my novel " * 1000


def test_a_store_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with store.database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.close()
    for upgrade in (False, True):
        with pytest.raises(StoreSchemaError, match="schema 9999, newer than this release's"):
            open_store(tmp_path, upgrade=upgrade)


def test_a_store_of_an_older_release_is_upgraded_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "data")
    file = add_file(store)
    store.close()
    newer = tmp_path / "migrations"
    shutil.copytree(Path(database.__file__).parent / "migrations", newer)
    (newer / "versions" / "next.py").write_text(
        "from alembic import op\nimport sqlalchemy as sa\n"
        "revision, down_revision = 'next', '0002'\n"
        "def upgrade(): op.add_column('files', sa.Column('colour', sa.Text))\n"
    )
    monkeypatch.setattr(database, "MIGRATIONS", str(newer))
    database._migrations.cache_clear()
    try:
        with pytest.raises(StoreSchemaError, match="old schema 0002, this release's is next"):
            open_store(tmp_path / "data")
        store = open_store(tmp_path / "data", upgrade=True)
        with store.database.reading() as connection:
            rows = connection.exec_driver_sql("SELECT id, colour FROM files").all()
        assert [tuple(row) for row in rows] == [(file.id, None)]
        store.close()
    finally:
        database._migrations.cache_clear()


def test_migrations_make_the_tables_that_the_code_uses(store: Store) -> None:
    with store.database.reading() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), schema.metadata)
    assert differences == []


def test_a_url_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a database URL"):
        open_store(tmp_path, "nonsense")
    open_store(tmp_path).close()


def test_a_data_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreIOError, match="cannot be used"):
        open_store(tmp_path / "taken")


def test_a_full_disk_loses_nothing_and_space_that_returns_is_used(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    file = add_file(store)
    pool = store.database.engine

    @sa.event.listens_for(pool, "checkout")
    def limit(driver_connection: sqlite3.Connection, *_: object) -> None:
        driver_connection.execute(f"PRAGMA max_page_count={pages}")

    pages = 1  # raised by SQLite to what is in use
    with pytest.raises(StoreFullError, match="no space left on its disk"):
        for number in range(1, 1000):
            add_file(store, number, filename="x" * 250)
    kept = store.files.page("", limit=1000, newest_first=False)[0]
    assert kept[0] == file
    pages = 100_000
    add_file(store, 5000)
    assert len(store.files.page("", limit=1000)[0]) == len(kept) + 1
    store.close()


def test_after_a_failed_fsync_nothing_more_is_acknowledged(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    @sa.event.listens_for(store.database.engine, "commit")
    def fail(_connection: sa.Connection) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise sa.exc.OperationalError("COMMIT", {}, error)

    with pytest.raises(StoreIOError, match="the disk fails"):
        add_file(store)
    sa.event.remove(store.database.engine, "commit", fail)
    with pytest.raises(StoreIOError, match="the disk fails"):
        add_file(store)
    store.close()
    store = open_store(tmp_path)
    add_file(store)
    store.close()


def test_a_server_keeps_its_name_over_restarts(tmp_path: Path) -> None:
    name = server_name(tmp_path)
    assert server_name(tmp_path) == name
    (tmp_path / "server-name").write_text("torn")
    assert server_name(tmp_path) not in (name, "torn")


def test_the_store_shrinks_when_a_batch_has_ended(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    lease, _ = started(store, 200)
    big = [result(number, text="x" * 20_000) for number in range(1, 201)]
    store.work.record(lease, big)
    store.endings.finalize(lease, BatchState.COMPLETED, 110.0)
    store.endings.finish(lease, [], 111.0)

    def pages() -> int:
        with store.database.reading() as connection:
            return int(connection.exec_driver_sql("PRAGMA page_count").scalar_one())

    assert pages() * 4096 > 4_000_000
    while store.endings.clean():
        pass
    assert pages() * 4096 < 400_000
    store.close()
