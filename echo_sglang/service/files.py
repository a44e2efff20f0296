"""Files with their bytes: streamed in and out through fsspec, named by the server.

`Files` is synchronous: asyncio code calls it, and steps its iterators, in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from echo_sglang.service.model import FileObject
from echo_sglang.service.store import Store

MIN_LIFETIME_S = 3_600
MAX_LIFETIME_S = 2_592_000
DEFAULT_LIFETIME_S = 2_592_000
"""A file is kept 30 days unless `expires_after` says otherwise; OpenAI's bounds."""

MAX_UPLOAD_BYTES = 200 * 1000 * 1000
READ_BYTES = 1 << 20


class Upload:
    """One file on its way in. Call `write` for each piece, then `finish` or `abort`."""

    def write(self, piece: bytes) -> None:
        """Raises TooLargeError beyond the limit, StoreFullError, StoreIOError."""
        raise NotImplementedError

    def finish(self) -> FileObject:
        """Make it durable and visible; only then is it acknowledged."""
        raise NotImplementedError

    def abort(self) -> None:
        """Leave nothing of it; also allowed after an error."""
        raise NotImplementedError


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
    ) -> None:
        """url: an fsspec URL ("s3://bucket/prefix"); None for `data_dir/files`."""

    def begin(
        self, owner: str, filename: str, purpose: str, lifetime_s: int | None = None
    ) -> Upload:
        """Start an upload. lifetime_s: `expires_after.seconds`, None for the default.

        Raises InvalidInputError: a filename that does not end in ".jsonl" with purpose
        "batch", is empty, longer than 255 characters or has control characters; an unknown
        purpose; a lifetime out of bounds. A path in the name is cut to its last part.
        """
        raise NotImplementedError

    def get(self, owner: str, file_id: str) -> FileObject:
        """Raises NotFoundError, also for a result file that still grows: for that one see
        `store.batches.by_result_file`."""
        raise NotImplementedError

    def read(self, file: FileObject, offset: int = 0) -> Iterator[bytes]:
        """Its bytes from `offset`, in pieces of at most READ_BYTES. Raises NotFoundError if
        it was deleted, StoreIOError."""
        raise NotImplementedError

    def delete(self, owner: str, file_id: str) -> None:
        """Raises NotFoundError, or ConflictError while a batch that has not ended reads it."""
        raise NotImplementedError

    def sweep(self) -> int:
        """Delete what expired and what crashes left half-written; how many files went."""
        raise NotImplementedError
