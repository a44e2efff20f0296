"""The bytes of files: one object a file id, here or in an object store.

What `finish` returned from is durable and whole under its id; before that nothing is seen
there. So no crash leaves half a file, and nothing is ever appended to an old one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import fsspec

from echo_sglang.service.errors import (
    NotFoundError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreIOError,
)

READ_BYTES = 1 << 20
_PART = ".part"


class Writer(Protocol):
    """One object on its way in."""

    def write(self, piece: bytes) -> None:
        """Raises StoreFullError, StoreIOError, StoreBusyError; then only `abort` is left."""
        ...

    def finish(self) -> None:
        """Make it durable and visible. Raises like `write`."""
        ...

    def abort(self) -> None:
        """Leave nothing of it. Never raises; does nothing after `finish`."""
        ...


class Contents(Protocol):
    """Where objects are kept."""

    def create(self, name: str) -> Writer:
        """Begin to write the object. An old one of that name stays until `finish`."""
        ...

    def read(self, name: str, offset: int) -> Iterator[bytes]:
        """Pieces of at most READ_BYTES from `offset`. Raises NotFoundError, StoreIOError."""
        ...

    def delete(self, name: str) -> None:
        """Remove it if it is there."""
        ...

    def old_names(self, before: float) -> Iterator[str]:
        """Names of objects, and of unfinished ones, not written to since `before`."""
        ...


def open_contents(folder: Path, url: str | None) -> Contents:
    """url: an fsspec URL ("s3://bucket/prefix"), None for `folder`. Raises StoreError."""
    if url is None or url.startswith("file://"):
        return LocalContents(Path(url.removeprefix("file://")) if url else folder)
    return RemoteContents(url)


class LocalContents:
    """Objects in a folder. fsync: replaced by tests that let the disk fail."""

    def __init__(self, folder: Path, *, fsync: Callable[[int], None] = os.fsync) -> None:
        self._folder = folder
        self._fsync = fsync
        with _disk_errors(f"the folder {folder}"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def create(self, name: str) -> Writer:
        return _LocalWriter(self._folder, name, self._fsync)

    def read(self, name: str, offset: int) -> Iterator[bytes]:
        with _disk_errors(f"file {name}"), open_regular(self._folder / name) as descriptor:
            while piece := os.pread(descriptor, READ_BYTES, offset):
                yield piece
                offset += len(piece)

    def delete(self, name: str) -> None:
        with _disk_errors(f"file {name}"), contextlib.suppress(FileNotFoundError):
            os.unlink(self._folder / name)

    def old_names(self, before: float) -> Iterator[str]:
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < before:
                    yield entry.name

    def path(self, name: str) -> Path:
        """Where the object is, to be opened by `open_regular`."""
        return self._folder / name


class _LocalWriter:
    def __init__(self, folder: Path, name: str, fsync: Callable[[int], None]) -> None:
        self._folder = folder
        self._target = folder / name
        self._part = folder / f"{name}{_PART}"
        self._fsync = fsync
        self._descriptor = -1
        with _disk_errors(f"file {name}"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._part)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._descriptor = os.open(self._part, flags, 0o600)

    def write(self, piece: bytes) -> None:
        with _disk_errors(f"file {self._target.name}"):
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def finish(self) -> None:
        with _disk_errors(f"file {self._target.name}"):
            self._fsync(self._descriptor)
            self._close()
            os.rename(self._part, self._target)
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._fsync(folder)
            finally:
                os.close(folder)

    def abort(self) -> None:
        self._close()
        with contextlib.suppress(OSError):
            os.unlink(self._part)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RemoteContents:
    """Objects under an fsspec URL; an object store shows them only when whole."""

    def __init__(self, url: str) -> None:
        with _remote_errors(url):
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
            self._root = root.rstrip("/")
            self._url = url
            self._fs.ls(self._root.split("/")[0])

    def create(self, name: str) -> Writer:
        with _remote_errors(self._url):
            return _RemoteWriter(self._fs.open(self._path(name), "wb"), self._url)

    def read(self, name: str, offset: int) -> Iterator[bytes]:
        with _remote_errors(f"file {name}"):
            source = self._fs.open(self._path(name), "rb", block_size=4 * READ_BYTES)
        with source:
            source.seek(offset)
            while True:
                with _remote_errors(f"file {name}"):
                    piece: bytes = source.read(READ_BYTES)
                if not piece:
                    return
                yield piece

    def delete(self, name: str) -> None:
        with _remote_errors(self._url), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def old_names(self, before: float) -> Iterator[str]:
        with _remote_errors(self._url):
            try:
                found = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return
        for entry in found:
            changed = entry.get("LastModified")
            if changed is not None and changed.timestamp() < before:
                yield str(entry["name"]).rsplit("/", 1)[-1]

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


class _RemoteWriter:
    def __init__(self, target: Any, url: str) -> None:
        self._target = target
        self._url = url

    def write(self, piece: bytes) -> None:
        with _remote_errors(self._url):
            self._target.write(piece)

    def finish(self) -> None:
        with _remote_errors(self._url):
            self._target.close()

    def abort(self) -> None:
        if not self._target.closed:
            with contextlib.suppress(Exception):
                self._target.discard()
            self._target.closed = True


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """A descriptor to read a regular file; a link or device in its place is an OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{what} has no bytes any more") from error
    except OSError as error:
        raise _disk_error(what, error) from error


def _disk_error(what: str, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(f"{what}: no space left on the disk; free some ({error})")
    return StoreIOError(f"{what}: the disk or its rights refuse ({error})")


@contextlib.contextmanager
def _remote_errors(what: str) -> Iterator[None]:
    """An object store may fail in any way its client library likes; all may pass."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{what} does not exist in the object store") from error
    except Exception as error:
        raise StoreBusyError(f"{what}: the object store refuses ({error!r:.300})") from error
