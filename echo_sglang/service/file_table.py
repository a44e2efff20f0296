"""Rows of stored files. Their bytes are elsewhere, see `files.Files`, which callers use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from echo_sglang.service import schema
from echo_sglang.service.database import Database
from echo_sglang.service.errors import ConflictError, InvalidInputError, NotFoundError
from echo_sglang.service.model import FILE_ID, FINAL_STATES, FileObject

_files = schema.files.c
_batches = schema.batches.c

_READ_BY_A_BATCH = (
    sa.select(_batches.id)
    .where(_batches.input_file_id == _files.id)
    .where(_batches.state.not_in(sorted(FINAL_STATES)))
    .limit(1)
)


class FileTable:
    """Rows of stored files."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, file: FileObject) -> None:
        """Keep a row whose bytes are already durable."""
        with self._database.writing() as connection:
            insert_file(connection, file)

    def get(self, owner: str, file_id: str) -> FileObject:
        """Raises NotFoundError."""
        with self._database.reading() as connection:
            return _get(connection, owner, file_id)

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
        place = sa.tuple_(_files.created_at, _files.id)
        query = sa.select(schema.files).where(_files.owner == owner)
        if purpose is not None:
            query = query.where(_files.purpose == purpose)
        with self._database.reading() as connection:
            if after is not None:
                try:
                    last = _get(connection, owner, after)
                except NotFoundError as error:
                    raise InvalidInputError("after", str(error)) from None
                here = sa.tuple_(sa.literal(last.created_at), sa.literal(last.id))
                query = query.where(place < here if newest_first else place > here)
            order = [_files.created_at, _files.id]
            query = query.order_by(*(c.desc() if newest_first else c.asc() for c in order))
            rows = connection.execute(query.limit(limit + 1)).all()
        return [_file(row) for row in rows[:limit]], len(rows) > limit

    def remove(self, owner: str, file_id: str) -> FileObject:
        """Forget the row. Raises NotFoundError, or ConflictError while a batch that has not
        ended reads it."""
        with self._database.writing() as connection:
            file = _get(connection, owner, file_id, lock=True)
            reader = connection.execute(
                _READ_BY_A_BATCH.where(_files.id == file_id)
            ).scalar_one_or_none()
            if reader is not None:
                raise ConflictError(
                    f"file {file_id} is the input of {reader}, which has not ended; cancel that "
                    "batch or wait for it"
                )
            connection.execute(sa.delete(schema.files).where(_files.id == file_id))
        return file

    def expired(self, now: float, limit: int = 100) -> Sequence[FileObject]:
        """Files past their time that no unfinished batch reads."""
        query = (
            sa.select(schema.files)
            .where(_files.expires_at <= now)
            .where(~_READ_BY_A_BATCH.exists())
            .order_by(_files.expires_at)
            .limit(limit)
        )
        with self._database.reading() as connection:
            return [_file(row) for row in connection.execute(query)]

    def known(self, file_ids: Sequence[str]) -> frozenset[str]:
        """Which of these ids have a row, or are reserved by a batch that has not ended."""
        reserved = [
            sa.select(column)
            .where(column.in_(file_ids))
            .where(_batches.state.not_in(sorted(FINAL_STATES)))
            for column in (_batches.output_file, _batches.error_file)
        ]
        query = sa.union(sa.select(_files.id).where(_files.id.in_(file_ids)), *reserved)
        with self._database.reading() as connection:
            return frozenset(connection.execute(query).scalars())


def insert_file(connection: sa.Connection, file: FileObject) -> None:
    """Add the row within the caller's transaction."""
    connection.execute(
        sa.insert(schema.files).values(
            {
                "id": file.id,
                "owner": file.owner,
                "filename": file.filename,
                "purpose": file.purpose,
                "size_bytes": file.size_bytes,
                "created_at": file.created_at,
                "expires_at": file.expires_at,
            }
        )
    )


def _get(connection: sa.Connection, owner: str, file_id: str, *, lock: bool = False) -> FileObject:
    row = None
    if FILE_ID.fullmatch(file_id):
        query = sa.select(schema.files).where(_files.id == file_id, _files.owner == owner)
        row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFoundError(f"no file with id {file_id[:80]!r}")
    return _file(row)


def _file(row: sa.Row[Any]) -> FileObject:
    return FileObject(**row._mapping)
