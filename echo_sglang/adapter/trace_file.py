"""A text file of bounded size: when it is full it becomes PATH.1, and PATH begins anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TextIO


class Opener(Protocol):
    """Opens the newest file for appending text; a fake one can fail like a full disk."""

    def __call__(self, path: Path) -> TextIO:
        """Raises OSError."""


def open_for_append(path: Path) -> TextIO:
    """The opener for real files; UTF-8, unbuffered by lines: `write` hands over whole batches."""
    return open(path, "a", encoding="utf-8", newline="\n")


class RotatingFile:
    """PATH, PATH.1, ..., oldest with the largest number, `max_files` in all.

    Each begins with the line of `header`. One that exists at the first write is of an
    earlier server and is moved to PATH.1, never appended to: its last line may be torn.
    Every method raises OSError as the file system does; after one nothing is promised but
    `close`.
    """

    def __init__(
        self,
        path: Path,
        header: Callable[[], str],
        *,
        max_bytes: int,
        max_files: int,
        opener: Opener = open_for_append,
    ) -> None:
        self._path = path
        self._header = header
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._opener = opener
        self._file: TextIO | None = None
        self._size = 0

    def write(self, lines: Iterable[str]) -> None:
        """Append lines (without newline) and hand them to the system."""
        if self._file is None or self._size >= self._max_bytes:
            self._begin()
        assert self._file is not None
        text = "".join(f"{line}\n" for line in lines)
        self._file.write(text)
        self._file.flush()
        self._size += len(text)

    def close(self) -> None:
        """Close the newest file, if one is open."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _begin(self) -> None:
        self.close()
        self._shift()
        self._file = self._opener(self._path)
        text = self._header() + "\n"
        self._file.write(text)
        self._size = len(text)

    def _shift(self) -> None:
        """PATH to PATH.1, PATH.1 to PATH.2, ...; what exceeds `max_files` is deleted."""
        names = [self._path, *(numbered(self._path, n) for n in range(1, self._max_files))]
        if self._max_files == 1:
            self._path.unlink(missing_ok=True)
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            if newer.exists():
                os.replace(newer, older)


def numbered(path: Path, number: int) -> Path:
    """The name that `path` has after `number` rotations; itself for 0."""
    return path if number == 0 else path.with_name(f"{path.name}.{number}")


def files_of(path: Path) -> list[Path]:
    """The existing files of a rotated PATH, oldest first."""
    found = [path] if path.exists() else []
    number = 1
    while (older := numbered(path, number)).exists():
        found.insert(0, older)
        number += 1
    return found
