"""Unified diffs as values: compare two files, write a diff. Bytes throughout.

Lines end at b"\\n" only, so CRLF and any other byte survive. What is written is canonical: three
context lines, sorted paths, no timestamps, no index lines, for Python the enclosing def or class
behind the second @@. The same two trees always give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

CONTEXT_LINES = 3
DEV_NULL = "/dev/null"
NO_NEWLINE = b"\\ No newline at end of file\n"
_PYTHON_SCOPE = re.compile(rb"[ \t]*(?:class|def|async def)[ \t]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunk:
    """One hunk; `lines` are (tag, content), tag one of " ", "-", "+", content with its newline.

    `old_index` is the 0-based index of its first old line; `heading` is for readers only.
    """

    old_index: int
    new_index: int
    lines: tuple[tuple[str, bytes], ...]
    heading: bytes = b""

    @property
    def old(self) -> list[bytes]:
        return [content for tag, content in self.lines if tag != "+"]

    @property
    def new(self) -> list[bytes]:
        return [content for tag, content in self.lines if tag != "-"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDiff:
    """What a patch does to one file; `path` is posix and starts with "sglang/"."""

    path: str
    adds_file: bool
    removes_file: bool
    hunks: tuple[Hunk, ...]


def split_lines(data: bytes) -> list[bytes]:
    """Lines with their b"\\n"; only the last may lack one."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def compare_trees(
    before: Mapping[str, bytes | None], after: Mapping[str, bytes | None]
) -> tuple[FileDiff, ...]:
    """Canonical diff of two trees given as path -> bytes (None: no such file)."""
    paths = sorted(set(before) | set(after))
    diffs = (compare_file(path, before.get(path), after.get(path)) for path in paths)
    return tuple(diff for diff in diffs if diff is not None)


def compare_file(path: str, before: bytes | None, after: bytes | None) -> FileDiff | None:
    """Canonical diff of one file, None when equal."""
    if before == after:
        return None
    old, new = split_lines(before or b""), split_lines(after or b"")
    hunks = tuple(_hunks(old, new, with_heading=path.endswith(".py")))
    return FileDiff(path=path, adds_file=before is None, removes_file=after is None, hunks=hunks)


def _hunks(old: list[bytes], new: list[bytes], *, with_heading: bool) -> Iterator[Hunk]:
    script = _edit_script(old, new)
    changed = [i for i, (tag, _, _) in enumerate(script) if tag != " "]
    spans: list[list[int]] = []
    for i in changed:
        start, stop = max(0, i - CONTEXT_LINES), min(len(script), i + CONTEXT_LINES + 1)
        if spans and start <= spans[-1][1]:
            spans[-1][1] = stop
        else:
            spans.append([start, stop])
    for start, stop in spans:
        _, old_index, new_index = script[start]
        lines = tuple((tag, new[j] if tag == "+" else old[i]) for tag, i, j in script[start:stop])
        heading = _heading(old, old_index) if with_heading else b""
        yield Hunk(old_index=old_index, new_index=new_index, lines=lines, heading=heading)


def _heading(old: list[bytes], index: int) -> bytes:
    scopes = (line for line in reversed(old[:index]) if _PYTHON_SCOPE.match(line))
    return next(scopes, b"").strip()


def _edit_script(old: list[bytes], new: list[bytes]) -> list[tuple[str, int, int]]:
    """(tag, old index, new index) per line, deletions before insertions.

    Myers' greedy shortest edit script (Algorithmica 1, 1986) between the common head and tail.
    """
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    a, b = old[head : len(old) - tail], new[head : len(new) - tail]
    script = [(" ", i, i) for i in range(head)]
    i, j = head, head
    for tag in _myers(a, b):
        script.append((tag, i, j))
        i += tag != "+"
        j += tag != "-"
    script += [(" ", i + k, j + k) for k in range(tail)]
    return _deletions_first(script)


def _common(a: list[bytes], b: list[bytes]) -> int:
    unequal = (k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(unequal, min(len(a), len(b)))


def _myers(a: list[bytes], b: list[bytes]) -> list[str]:
    reach = {1: 0}
    trace: list[dict[int, int]] = []
    for edits in range(len(a) + len(b) + 1):
        trace.append(dict(reach))
        for k in range(-edits, edits + 1, 2):
            down = k == -edits or (k != edits and reach[k - 1] < reach[k + 1])
            x = reach[k + 1] if down else reach[k - 1] + 1
            while x < len(a) and x - k < len(b) and a[x] == b[x - k]:
                x += 1
            reach[k] = x
            if x >= len(a) and x - k >= len(b):
                return _walk_back(trace, len(a), len(b))
    raise AssertionError("unreachable: deleting all and inserting all is always a script")


def _walk_back(trace: list[dict[int, int]], x: int, y: int) -> list[str]:
    tags: list[str] = []
    for edits in range(len(trace) - 1, -1, -1):
        reach, k = trace[edits], x - y
        down = k == -edits or (k != edits and reach[k - 1] < reach[k + 1])
        previous_k = k + 1 if down else k - 1
        previous_x = reach[previous_k] if edits else 0
        previous_y = previous_x - previous_k if edits else 0
        while x > previous_x and y > previous_y:
            tags.append(" ")
            x, y = x - 1, y - 1
        if edits:
            tags.append("+" if down else "-")
            x, y = previous_x, previous_y
    return tags[::-1]


def _deletions_first(script: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    ordered: list[tuple[str, int, int]] = []
    run: list[tuple[str, int, int]] = []
    for entry in [*script, (" ", -1, -1)]:
        if entry[0] != " ":
            run.append(entry)
            continue
        if run:
            removed = [e for e in run if e[0] == "-"]
            inserted = [e for e in run if e[0] == "+"]
            first_new = run[0][2]
            after_old = run[0][1] + len(removed)
            ordered += [("-", i, first_new) for _, i, _ in removed]
            ordered += [("+", after_old, j) for _, _, j in inserted]
            run = []
        ordered.append(entry)
    return ordered[:-1]


def render(diffs: Iterable[FileDiff]) -> bytes:
    """The diff as bytes, files sorted by path."""
    out: list[bytes] = []
    for diff in sorted(diffs, key=lambda d: d.path):
        old_name = DEV_NULL if diff.adds_file else f"a/{diff.path}"
        new_name = DEV_NULL if diff.removes_file else f"b/{diff.path}"
        out.append(f"--- {old_name}\n+++ {new_name}\n".encode())
        for hunk in diff.hunks:
            old_range = _range(hunk.old_index, len(hunk.old))
            new_range = _range(hunk.new_index, len(hunk.new))
            heading = b" " + hunk.heading if hunk.heading else b""
            out.append(f"@@ -{old_range} +{new_range} @@".encode() + heading + b"\n")
            for tag, content in hunk.lines:
                out.append(tag.encode() + content)
                if not content.endswith(b"\n"):
                    out.append(b"\n" + NO_NEWLINE)
    return b"".join(out)


def _range(index: int, length: int) -> str:
    if length == 1:
        return str(index + 1)
    return f"{index + 1 if length else index},{length}"
