"""Files with their bytes: streamed in and out, named by the server.

`Files` is synchronous: asyncio code calls it, and steps its iterators, in a thread.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from echo_sglang.service.contents import Contents, LocalContents, Writer, open_contents
from echo_sglang.service.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    TooLargeError,
)
from echo_sglang.service.model import FILE_ID, FileObject
from echo_sglang.service.store import Store

MIN_LIFETIME_S = 3_600
MAX_LIFETIME_S = 2_592_000
DEFAULT_LIFETIME_S = 2_592_000
"""A file is kept 30 days unless `expires_after` says otherwise; OpenAI's bounds."""

MAX_UPLOAD_BYTES = 200 * 1000 * 1000
UPLOAD_PURPOSES = ("batch",)
RESULT_PURPOSE = "batch_output"

_ORPHAN_AFTER_S = 86_400.0
"""Bytes without a row this old are what a crash left; younger ones may be an upload."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WRITE_BYTES = 1 << 20


class Upload:
    """One file on its way in. Call `write` for each piece, then `finish` or `abort`."""

    def __init__(
        self,
        writer: Writer,
        max_bytes: int,
        finish: Callable[[int], FileObject],
    ) -> None:
        self._writer = writer
        self._max_bytes = max_bytes
        self._finish = finish
        self._size_bytes = 0

    def write(self, piece: bytes) -> None:
        """Raises TooLargeError beyond the limit, StoreFullError, StoreIOError."""
        self._size_bytes += len(piece)
        if self._size_bytes > self._max_bytes:
            raise TooLargeError(
                "file",
                f"the file has more than {self._max_bytes:,} bytes, which is the most allowed; "
                "split it",
            )
        self._writer.write(piece)

    def finish(self) -> FileObject:
        """Make it durable and visible; only then is it acknowledged."""
        self._writer.finish()
        return self._finish(self._size_bytes)

    def abort(self) -> None:
        """Leave nothing of it; also allowed after an error."""
        self._writer.abort()


class Files:
    """Files of all owners."""

    def __init__(
        self,
        store: Store,
        data_dir: Path,
        url: str | None = None,
        *,
        clock: Callable[[], float],
        max_upload_bytes: int = MAX_UPLOAD_BYTES,
        contents: Contents | None = None,
    ) -> None:
        """url: an fsspec URL ("s3://bucket/prefix"); None for `data_dir/files`.

        contents: where bytes are kept instead. Raises StoreError if it cannot be used.
        """
        self._store = store
        self._contents = contents or open_contents(data_dir / "files", url)
        self._copies = LocalContents(data_dir / "inputs")
        self._clock = clock
        self._max_upload_bytes = max_upload_bytes

    def begin(
        self, owner: str, filename: str, purpose: str, lifetime_s: int | None = None
    ) -> Upload:
        """Start an upload. lifetime_s: `expires_after.seconds`, None for the default.

        Raises InvalidInputError: a filename that does not end in ".jsonl" with purpose
        "batch", is empty, longer than 255 characters or has control characters; an unknown
        purpose; a lifetime out of bounds. A path in the name is cut to its last part.
        """
        if purpose not in UPLOAD_PURPOSES:
            allowed = ", ".join(UPLOAD_PURPOSES)
            raise InvalidInputError("purpose", f"{purpose[:40]!r} is not one of: {allowed}")
        name = _checked_name(filename)
        lifetime = checked_lifetime_s("expires_after.seconds", lifetime_s)
        file_id = f"file-{self._store.database.new_hex()}"

        def finish(size_bytes: int) -> FileObject:
            now = self._clock()
            file = FileObject(
                id=file_id,
                owner=owner,
                filename=name,
                purpose=purpose,
                size_bytes=size_bytes,
                created_at=now,
                expires_at=now + lifetime,
            )
            self._store.files.add(file)
            return file

        return Upload(self._contents.create(file_id), self._max_upload_bytes, finish)

    def get(self, owner: str, file_id: str) -> FileObject:
        """Raises NotFoundError, also for a result file that still grows: for that one see
        `store.batches.by_result_file`."""
        file = self._store.files.get(owner, file_id)
        if file.expires_at is not None and file.expires_at <= self._clock():
            raise NotFoundError(f"file {file_id} has expired")
        return file

    def read(self, file: FileObject, offset: int = 0) -> Iterator[bytes]:
        """Its bytes from `offset`, in pieces of at most READ_BYTES. Raises NotFoundError if
        it was deleted, StoreIOError."""
        return self._contents.read(file.id, offset)

    def delete(self, owner: str, file_id: str) -> None:
        """Raises NotFoundError, or ConflictError while a batch that has not ended reads it."""
        self._store.files.remove(owner, file_id)
        self._contents.delete(file_id)

    def sweep(self) -> int:
        """Delete what expired and what crashes left half-written; how many files went."""
        now = self._clock()
        gone = 0
        for file in self._store.files.expired(now):
            with contextlib.suppress(NotFoundError, ConflictError):  # somebody was faster
                self.delete(file.owner, file.id)
                gone += 1
        for contents in (self._contents, self._copies):
            old = list(contents.old_names(now - _ORPHAN_AFTER_S))
            known = self._store.files.known([name for name in old if FILE_ID.fullmatch(name)])
            for name in old:
                if name not in known:
                    contents.delete(name)
                    gone += 1
        return gone

    # For the runner

    def local_path(self, file_id: str) -> Path:
        """Where the bytes of an input file can be read in place, fetched first if they are in
        an object store. Raises NotFoundError, StoreError."""
        if isinstance(self._contents, LocalContents):
            return self._contents.path(file_id)
        path = self._copies.path(file_id)
        if not path.exists():
            _copy(self._contents.read(file_id, 0), self._copies.create(file_id))
        return path

    def drop_copy(self, file_id: str) -> None:
        """The local copy of an input file is no longer needed."""
        self._copies.delete(file_id)

    def write_result(
        self, owner: str, file_id: str, filename: str, lines: Iterable[bytes], lifetime_s: float
    ) -> FileObject:
        """Write a result file and make it durable. It is seen when its row is added."""
        size_bytes = _copy(_joined(lines), self._contents.create(file_id))
        now = self._clock()
        return FileObject(
            id=file_id,
            owner=owner,
            filename=filename,
            purpose=RESULT_PURPOSE,
            size_bytes=size_bytes,
            created_at=now,
            expires_at=now + lifetime_s,
        )


def checked_lifetime_s(param: str, seconds: int | None) -> int:
    """`expires_after.seconds` within its bounds, the default for None.

    Raises InvalidInputError.
    """
    if seconds is None:
        return DEFAULT_LIFETIME_S
    if not MIN_LIFETIME_S <= seconds <= MAX_LIFETIME_S:
        raise InvalidInputError(
            param, f"{seconds} is not from {MIN_LIFETIME_S} to {MAX_LIFETIME_S} seconds"
        )
    return seconds


def _checked_name(filename: str) -> str:
    if _CONTROL.search(filename) or not filename.isprintable():
        raise InvalidInputError("file", "the file name has characters that cannot be printed")
    name = os.path.basename(filename.replace("\\", "/"))
    if len(name) > 255:
        raise InvalidInputError("file", f"the file name has {len(name)} characters; 255 at most")
    if not name.lower().endswith(".jsonl"):
        raise InvalidInputError(
            "file", f"the file name {name[:80]!r} does not end in .jsonl, as a batch's input must"
        )
    return name


def _copy(pieces: Iterable[bytes], writer: Writer) -> int:
    """Write all pieces and finish; how many bytes. Leaves nothing on an error."""
    size_bytes = 0
    try:
        for piece in pieces:
            writer.write(piece)
            size_bytes += len(piece)
        writer.finish()
    except BaseException:
        writer.abort()
        raise
    return size_bytes


def _joined(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines with their newlines, in pieces worth a system call."""
    piece = bytearray()
    for line in lines:
        piece += line
        piece += b"\n"
        if len(piece) >= _WRITE_BYTES:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)
