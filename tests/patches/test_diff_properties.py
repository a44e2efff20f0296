"""Any two trees: export and apply give the edited bytes, revert the released ones."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from patchtool.diff import compare_file, compare_trees, render, split_lines
from patchtool.exchange import Writer
from patchtool.operations import apply, revert
from patchtool.parse import parse
from patchtool.place import apply_strictly, place
from patchtool.series import Patch, Pin, Series, sha256

from tests.examples import examples

from .world import VERSION, snapshot, write_package

LINES = [b"a", b"b", b"c", b"", b" ", b"\r", b"a\r", b"\x00\xff", b"-", b"+", b"\\ x", b"--- a/x"]
FILES = st.one_of(
    st.none(),
    st.binary(max_size=12),
    st.builds(
        lambda lines, last: b"".join(line + b"\n" for line in lines) + last,
        st.lists(st.sampled_from(LINES), max_size=40),
        st.sampled_from([b"", b"tail", b"tail\r"]),
    ),
)
TREES = st.dictionaries(
    st.sampled_from([f"sglang/{name}" for name in ("a.py", "b/c.txt", "b/d/e.cu", "f")]),
    st.tuples(FILES, FILES),
    max_size=4,
)


def rewrite_some_lines(data: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    lines = split_lines(data)
    for at, line in edits:
        lines[at % (len(lines) + 1) : at % (len(lines) + 1) + at % 3] = [line + b"\n"] * (at % 4)
    return b"".join(lines)


@given(TREES)
@examples(400)
def test_what_is_exported_is_read_back_and_applied_to_the_edited_bytes(
    tree: dict[str, tuple[bytes | None, bytes | None]],
) -> None:
    before = {path: pair[0] for path, pair in tree.items()}
    after = {path: pair[1] for path, pair in tree.items()}
    body = render(compare_trees(before, after))
    diffs = parse(body, name="p.patch")
    result = dict(before)
    for diff in diffs:
        result[diff.path] = apply_strictly(before[diff.path], diff, patch="p.patch")
    assert result == after
    assert render(compare_trees(before, result)) == body


@given(
    st.lists(st.sampled_from(LINES), min_size=30, max_size=120),
    st.lists(st.tuples(st.integers(0, 119), st.sampled_from(LINES)), max_size=6),
    st.integers(0, 9),
)
@examples(200)
def test_a_diff_is_placed_again_when_lines_are_put_in_front(
    lines: list[bytes], edits: list[tuple[int, bytes]], front_lines: int
) -> None:
    # Numbered lines occur once, so there is one right place for every hunk.
    before = b"".join(b"%d %s\n" % (i, line) for i, line in enumerate(lines))
    after = rewrite_some_lines(before, edits)
    diff = compare_file("sglang/a", before, after)
    front = b"".join(b"front %d\n" % i for i in range(front_lines))
    if diff is not None:
        placement = place(front + before, diff)
        assert placement.conflicts == ()
        assert placement.result == front + after
        assert set(placement.offsets) == {front_lines}


@given(
    st.lists(st.sampled_from(LINES), max_size=60),
    st.lists(st.tuples(st.integers(0, 59), st.sampled_from(LINES)), max_size=4),
)
@examples(200)
def test_a_diff_has_no_more_changed_lines_than_edits_made(
    lines: list[bytes], edits: list[tuple[int, bytes]]
) -> None:
    before = b"".join(line + b"\n" for line in lines)
    after = rewrite_some_lines(before, edits)
    diff = compare_file("sglang/a", before, after)
    changed = [tag for hunk in (diff.hunks if diff else ()) for tag, _ in hunk.lines if tag != " "]
    # One edit deletes at % 3 lines and inserts at % 4.
    assert len(changed) <= sum(at % 3 + at % 4 for at, _ in edits)


@given(TREES)
@examples(25)
def test_apply_and_revert_of_any_tree_on_disk(
    tree: dict[str, tuple[bytes | None, bytes | None]],
) -> None:
    stock = {path: pair[0] for path, pair in tree.items()}
    edited = {path: pair[1] for path, pair in tree.items()}
    body = render(compare_trees(stock, edited))
    patch = Patch(
        name="0001-any.patch",
        header=b"",
        fields={},
        diffs=parse(body, name="0001-any.patch"),
        body=body,
    )
    pin = Pin(version=VERSION, files={path: sha256(data) for path, data in stock.items()})
    with tempfile.TemporaryDirectory() as base:
        target = write_package(Path(base), {"sglang/__init__.py": b"", **stock})
        series = Series(folder=Path(base), version=VERSION, patches=(patch,))
        before = snapshot(target)
        apply(target, series, pin, writer=Writer())
        assert {path: target.read(path) for path in edited} == edited
        revert(target)
        assert snapshot(target) == before
