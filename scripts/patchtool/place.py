"""Put a file's diff onto bytes: strictly, or (for rehearsals and re-exports) wherever it fits."""

from __future__ import annotations

from dataclasses import dataclass

from .diff import FileDiff, Hunk, split_lines
from .errors import ConflictError


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """The first line of a hunk that does not fit; `line` is 1-based in the file found."""

    path: str
    hunk: int
    line: int
    expected: str
    found: str

    def __str__(self) -> str:
        return (
            f"{self.path}, hunk {self.hunk}, line {self.line}: "
            f"expected {self.expected}, found {self.found}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A diff placed hunk by hunk; `result` leaves out the hunks in `conflicts`."""

    result: bytes | None
    offsets: tuple[int, ...]
    conflicts: tuple[Conflict, ...]


def apply_strictly(before: bytes | None, diff: FileDiff, *, patch: str) -> bytes | None:
    """The patched bytes (None: the file is removed). No fuzz, no offset.

    Raises ConflictError with file, hunk, line, what was expected and what is there.
    """
    placement = place(before, diff, reach_lines=0)
    if placement.conflicts:
        raise ConflictError(f"{patch} does not fit: {placement.conflicts[0]}.")
    return placement.result


def place(before: bytes | None, diff: FileDiff, *, reach_lines: int | None = None) -> Placement:
    """Place every hunk at its line or, up to `reach_lines` away (None: anywhere), where it fits."""
    presence = _presence_conflict(before, diff)
    if presence is not None:
        return Placement(result=before, offsets=(), conflicts=(presence,))
    lines = split_lines(before or b"")
    out: list[bytes] = []
    offsets: list[int] = []
    conflicts: list[Conflict] = []
    cursor, drift = 0, 0
    for number, hunk in enumerate(diff.hunks, start=1):
        at = _find(lines, hunk, hunk.old_index + drift, cursor, reach_lines)
        if at is None:
            wanted = hunk.old_index + drift
            spot = wanted if reach_lines == 0 else _closest(lines, hunk, wanted)
            conflicts.append(_mismatch(lines, hunk, spot, diff.path, number))
            continue
        out += lines[cursor:at]
        out += hunk.new
        cursor, drift = at + len(hunk.old), at - hunk.old_index
        offsets.append(drift)
    out += lines[cursor:]
    conflicts += _ending_conflicts(out, diff)
    result = None if diff.removes_file and not conflicts else b"".join(out)
    return Placement(result=result, offsets=tuple(offsets), conflicts=tuple(conflicts))


def _presence_conflict(before: bytes | None, diff: FileDiff) -> Conflict | None:
    if diff.adds_file == (before is None):
        return None
    expected, found = ("no file", "a file") if diff.adds_file else ("a file", "no file")
    return Conflict(path=diff.path, hunk=1, line=1, expected=expected, found=found)


def _ending_conflicts(out: list[bytes], diff: FileDiff) -> list[Conflict]:
    if diff.removes_file and out:
        found = f"{len(out)} lines left over"
        expected = "an empty rest to remove"
        return [Conflict(path=diff.path, hunk=1, line=1, expected=expected, found=found)]
    for line, content in enumerate(out[:-1], start=1):
        if not content.endswith(b"\n"):
            expected, found = "the end of the file", "more lines"
            hunk = len(diff.hunks)
            return [Conflict(path=diff.path, hunk=hunk, line=line, expected=expected, found=found)]
    return []


def _find(
    lines: list[bytes], hunk: Hunk, wanted: int, first: int, reach_lines: int | None
) -> int | None:
    """Nearest index to `wanted`, not before `first`, at which the old side stands."""
    old = hunk.old
    last = len(lines) - len(old)
    if first <= wanted <= last and lines[wanted : wanted + len(old)] == old:
        return wanted
    if reach_lines == 0 or not old:
        return None
    fits = [i for i in range(first, last + 1) if lines[i : i + len(old)] == old]
    near = [i for i in fits if reach_lines is None or abs(i - wanted) <= reach_lines]
    return min(near, key=lambda i: (abs(i - wanted), i), default=None)


def _closest(lines: list[bytes], hunk: Hunk, wanted: int) -> int:
    """Index at which most text of the old side agrees, nearest to `wanted` on a tie."""
    old = hunk.old

    def agreement(at: int) -> tuple[int, int]:
        pairs = zip(lines[at : at + len(old)], old, strict=False)
        return sum(len(x.strip()) for x, y in pairs if x == y), -abs(at - wanted)

    return max(range(len(lines) + 1), key=agreement)


def _mismatch(lines: list[bytes], hunk: Hunk, at: int, path: str, number: int) -> Conflict:
    old, window = hunk.old, lines[at : at + len(hunk.old)]
    first = next((i for i, line in enumerate(old) if window[i : i + 1] != [line]), 0)
    found = show(window[first]) if first < len(window) else "the end of the file"
    expected = show(old[first]) if old else "the place of an insertion"
    return Conflict(path=path, hunk=number, line=at + first + 1, expected=expected, found=found)


def show(line: bytes) -> str:
    """A line for a message: quoted, its newline dropped only when it is the ordinary one."""
    return repr(line.removesuffix(b"\n").decode("utf-8", "backslashreplace"))
