"""Read a strict unified diff; every complaint names patch and line."""

from __future__ import annotations

import re

from .diff import DEV_NULL, NO_NEWLINE, FileDiff, Hunk, split_lines
from .errors import MalformedPatchError

_HUNK_HEADER = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(?: .*)?\n")


def check_path(path: str, where: str) -> str:
    """`path` itself if it stays inside sglang/; MalformedPatchError otherwise."""
    parts = path.split("/")
    bad_part = any(part in ("", ".", "..") or part.startswith(".echo_patches") for part in parts)
    if parts[0] != "sglang" or len(parts) < 2 or bad_part or "\\" in path or "\0" in path:
        raise MalformedPatchError(
            f"{where}: the path {path!r} is not inside sglang/. "
            "A patch may only touch files named sglang/..., without '..'."
        )
    return path


def parse(body: bytes, *, name: str, first_line: int = 1) -> tuple[FileDiff, ...]:
    """Read a diff; MalformedPatchError names patch and line for anything but a strict one."""
    return _Parser(split_lines(body), name, first_line).files()


class _Parser:
    """A cursor over the lines of one diff."""

    def __init__(self, lines: list[bytes], name: str, first_line: int) -> None:
        self._lines = lines
        self._name = name
        self._first_line = first_line
        self._at = 0

    def files(self) -> tuple[FileDiff, ...]:
        diffs: list[FileDiff] = []
        while self._at < len(self._lines):
            diff = self._file()
            if any(diff.path == other.path for other in diffs):
                raise self._error(f"{diff.path} appears twice; one section per file")
            diffs.append(diff)
        return tuple(diffs)

    def _file(self) -> FileDiff:
        old_name = self._name_line(b"--- ", "a/")
        new_name = self._name_line(b"+++ ", "b/")
        if old_name is None and new_name is None:
            raise self._error("both sides are /dev/null")
        if old_name and new_name and old_name != new_name:
            raise self._error(f"{old_name} becomes {new_name}; write a rename as remove and add")
        path = check_path(
            str(new_name or old_name), f"{self._name}:{self._first_line + self._at - 1}"
        )
        hunks: list[Hunk] = []
        shift, end = 0, 0
        while self._at < len(self._lines) and self._lines[self._at].startswith(b"@@"):
            hunk = self._hunk()
            if hunk.old_index < end or hunk.new_index != hunk.old_index + shift:
                raise self._error(f"line numbers of hunk {len(hunks) + 1} of {path} do not add up")
            end = hunk.old_index + len(hunk.old)
            shift += len(hunk.new) - len(hunk.old)
            hunks.append(hunk)
        if not hunks and old_name and new_name:
            raise self._error(f"{path} has no hunk")
        return FileDiff(
            path=path,
            adds_file=old_name is None,
            removes_file=new_name is None,
            hunks=tuple(hunks),
        )

    def _name_line(self, marker: bytes, prefix: str) -> str | None:
        line = self._next()
        if not line.startswith(marker) or not line.endswith(b"\n"):
            raise self._error(f"expected '{marker.decode()}{prefix}sglang/...', found {line!r}")
        name = line[len(marker) : -1].decode("utf-8", "backslashreplace")
        if name == DEV_NULL:
            return None
        if not name.startswith(prefix):
            raise self._error(f"expected a path beginning with {prefix}, found {name!r}")
        return name[len(prefix) :]

    def _hunk(self) -> Hunk:
        header = _HUNK_HEADER.fullmatch(self._next())
        if header is None:
            raise self._error("not a hunk header: '@@ -start,count +start,count @@'")
        old_start, new_start = int(header[1]), int(header[3])
        old_count = 1 if header[2] is None else int(header[2])
        new_count = 1 if header[4] is None else int(header[4])
        lines: list[tuple[str, bytes]] = []
        old_left, new_left = old_count, new_count
        while old_left > 0 or new_left > 0:
            tag, content = self._hunk_line()
            old_left -= tag != "+"
            new_left -= tag != "-"
            lines.append((tag, content))
        if old_left or new_left or not any(tag != " " for tag, _ in lines):
            raise self._error("the counts in the hunk header do not match its lines")
        return Hunk(
            old_index=old_start - 1 if old_count else old_start,
            new_index=new_start - 1 if new_count else new_start,
            lines=tuple(lines),
        )

    def _hunk_line(self) -> tuple[str, bytes]:
        line = self._next()
        tag = line[:1].decode("latin-1")
        if tag not in (" ", "-", "+") or not line.endswith(b"\n"):
            raise self._error(
                f"expected a line starting with ' ', '-' or '+', found {line!r} "
                "(an empty context line is one space; some editors strip it)"
            )
        content = line[1:]
        if self._at < len(self._lines) and self._lines[self._at] == NO_NEWLINE:
            self._at += 1
            content = content[:-1]
        return tag, content

    def _next(self) -> bytes:
        if self._at >= len(self._lines):
            raise self._error("the patch ends in the middle of a hunk or file name")
        self._at += 1
        return self._lines[self._at - 1]

    def _error(self, what: str) -> MalformedPatchError:
        line = self._first_line + max(self._at - 1, 0)
        return MalformedPatchError(f"{self._name}:{line}: {what}.")
