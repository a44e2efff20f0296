"""Rows of stored files. Their bytes are elsewhere, see `files.Files`, which callers use."""

from __future__ import annotations

from collections.abc import Sequence

from echo_sglang.service.database import Database
from echo_sglang.service.model import FileObject


class FileTable:
    """Rows of stored files."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, file: FileObject) -> None:
        """Keep a row whose bytes are already durable."""
        raise NotImplementedError

    def get(self, owner: str, file_id: str) -> FileObject:
        """Raises NotFoundError."""
        raise NotImplementedError

    def page(
        self,
        owner: str,
        *,
        limit: int,
        after: str | None = None,
        newest_first: bool = True,
        purpose: str | None = None,
    ) -> tuple[Sequence[FileObject], bool]:
        """At most `limit` files after the one called `after`, and if there are more.

        Raises InvalidInputError if `after` is not a file of this owner.
        """
        raise NotImplementedError

    def remove(self, owner: str, file_id: str) -> FileObject:
        """Forget the row. Raises NotFoundError, or ConflictError while a batch that has not
        ended reads it."""
        raise NotImplementedError

    def expired(self, now: float, limit: int = 100) -> Sequence[FileObject]:
        """Files past their time that no unfinished batch reads."""
        raise NotImplementedError
