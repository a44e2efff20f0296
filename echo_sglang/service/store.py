"""The durable store of files and batches: one object with one table group each.

Everything here is synchronous and safe to call from several threads; asyncio code calls it
through `asyncio.to_thread`. A method that returns has committed (SQLite: WAL with
`synchronous=FULL`); one that raises has written nothing, but see StoreIOError.
Owners are tenants: what belongs to another one is a NotFoundError.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from pathlib import Path

from echo_sglang.service.batch_table import BatchTable
from echo_sglang.service.database import Database
from echo_sglang.service.ending_table import EndingTable
from echo_sglang.service.errors import StoreError
from echo_sglang.service.file_table import FileTable
from echo_sglang.service.outbox import Outbox
from echo_sglang.service.work_table import WorkTable


class Store:
    """files: rows of stored files. batches: what the API reads and changes.
    work, endings: what the runner does, under leases. outbox: webhooks still to send."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.files = FileTable(database)
        self.batches = BatchTable(database)
        self.work = WorkTable(database)
        self.endings = EndingTable(database)
        self.outbox = Outbox(database)

    def close(self) -> None:
        """Give back connections and the lock on the data folder."""
        self.database.close()


def random_hex() -> str:
    """32 hexadecimal digits, not to be guessed and never used before."""
    return secrets.token_hex(16)


def open_store(
    data_dir: Path,
    url: str | None = None,
    *,
    upgrade: bool = False,
    events: bool = False,
    new_hex: Callable[[], str] = random_hex,
) -> Store:
    """Open, or create, the store.

    data_dir: folder of the default SQLite database; made if absent. It stays locked to this
    process until `close`, so that two servers cannot run on it.
    url: an SQLAlchemy URL ("postgresql+psycopg://..."); several servers may share one.
    upgrade: bring a store of an older release up to date instead of refusing it.
    events: keep an event in the outbox for every batch that ends.
    new_hex: makes ids, see `random_hex`.
    Raises StoreInUseError, StoreBusyError, StoreCorruptError, StoreSchemaError, StoreError.
    """
    return Store(Database.open(data_dir, url, upgrade=upgrade, events=events, new_hex=new_hex))


def server_name(data_dir: Path, new_hex: Callable[[], str] = random_hex) -> str:
    """The name under which this server holds leases: made once, kept in its data folder.

    Call it while `open_store` holds the folder. Raises StoreError.
    """
    path = data_dir / "server-name"
    try:
        name = path.read_text("ascii").strip() if path.exists() else ""
        if not re.fullmatch(r"server_[0-9a-f]{32}", name):
            name = f"server_{new_hex()}"
            path.write_text(f"{name}\n", "ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read or made: {error}; delete it") from error
    return name
