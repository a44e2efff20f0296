"""The step trace's file is bounded, and no trouble with it reaches the scheduler."""

from __future__ import annotations

import errno
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest

from echo_sglang.adapter import step_trace
from echo_sglang.adapter.step_trace import BATCH_ROWS, StepTraceWriter, row_text
from echo_sglang.adapter.trace_file import RotatingFile, files_of, open_for_append
from echo_sglang.estimate.step_trace import read_step_trace
from tests.unit.trace_kit import header, load, record

HEADER = json.dumps(header().to_json_values())


def rotating(path: Path, max_bytes: int = 10**9, max_files: int = 3, **options: object):
    return RotatingFile(
        path,
        lambda: HEADER,
        max_bytes=max_bytes,
        max_files=max_files,
        **options,  # type: ignore[arg-type]
    )


class FakeFile(io.StringIO):
    """A file whose `write` does what it is told to, then writes."""

    def __init__(self, before_write: Callable[[], None]) -> None:
        super().__init__()
        self.before_write = before_write

    def write(self, text: str) -> int:
        self.before_write()
        return super().write(text)


def failing_at(call: int, number: int) -> Callable[[Path], TextIO]:
    """An opener whose files fail with errno `number` from the `call`-th write on."""
    calls = [0]

    def fail() -> None:
        calls[0] += 1
        if calls[0] >= call:
            raise OSError(number, errno.errorcode[number])

    return lambda path: FakeFile(fail)


def read(path: Path) -> list[int]:
    """The iterations in all files of a trace."""
    files = [(file.name, file.read_text().splitlines(keepends=True)) for file in files_of(path)]
    return [one.iteration for one in read_step_trace(files).records]


def test_everything_appended_is_in_the_file_after_close(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    writer = StepTraceWriter(rotating(path))
    records = load(3 * BATCH_ROWS + 5)
    for one in records:
        writer.append(one)
    writer.close()
    assert read(path) == [one.iteration for one in records]
    assert writer.state.rows_written == len(records)
    assert (writer.state.rows_dropped, writer.state.error) == (0, None)


def test_a_full_file_becomes_the_first_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = row_text(record(1, rows=1))
    file = rotating(path, max_bytes=len(HEADER) + 3 * len(row), max_files=3)
    for iteration in range(10, 30):
        file.write([row_text(record(iteration, rows=1))])
    file.close()
    names = [found.name for found in files_of(path)]
    assert names == ["t.jsonl.2", "t.jsonl.1", "t.jsonl"]
    # Each file is full after its third row: 10-12 ... 19-21 are gone, 22-24 and 25-27 are kept.
    assert read(path) == list(range(22, 30))
    assert sorted(found.name for found in tmp_path.iterdir()) == sorted(names)


def test_with_one_file_the_trace_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    file = rotating(path, max_bytes=1, max_files=1)
    for iteration in (1, 2, 3):
        file.write([row_text(record(iteration, rows=1))])
    file.close()
    assert [found.name for found in tmp_path.iterdir()] == ["t.jsonl"]
    assert read(path) == [3]


def test_the_file_of_an_earlier_server_is_moved_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('torn{"')
    file = rotating(path)
    file.write([row_text(record(1, rows=1))])
    file.close()
    assert (tmp_path / "t.jsonl.1").read_text() == 'torn{"'
    assert path.read_text().startswith(HEADER)


def test_a_server_that_computes_nothing_leaves_the_earlier_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("old")
    writer = StepTraceWriter(rotating(path))
    writer.close()
    assert path.read_text() == "old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_disk_that_fails_switches_the_trace_off_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int, call: int
) -> None:
    opener = failing_at(call, number)
    writer = StepTraceWriter(rotating(tmp_path / "t.jsonl", opener=opener))
    for one in load(20 * BATCH_ROWS):
        writer.append(one)
    writer.close()
    for one in load(2 * BATCH_ROWS):
        writer.append(one)
    state = writer.state
    assert state.rows_recorded == 22 * BATCH_ROWS == state.rows_written + state.rows_dropped
    assert errno.errorcode[number] in (state.error or "")
    # The header is the first write, every batch one more.
    assert state.rows_written == max(call - 2, 0) * BATCH_ROWS
    assert caplog.text.count("switched off") == 1


def test_a_folder_that_is_not_there_switches_the_trace_off(tmp_path: Path) -> None:
    writer = StepTraceWriter(rotating(tmp_path / "absent" / "t.jsonl"))
    writer.append(record(1, rows=1))
    writer.close()
    assert "FileNotFoundError" in (writer.state.error or "")


def test_rows_are_dropped_and_counted_while_the_disk_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_trace, "MAX_PENDING_ROWS", 2 * BATCH_ROWS)
    path = tmp_path / "t.jsonl"
    disk_answers = threading.Event()

    def open_hanging(path: Path) -> TextIO:
        disk_answers.wait()
        return open_for_append(path)

    writer = StepTraceWriter(rotating(path, opener=open_hanging))
    records = load(10 * BATCH_ROWS)
    for one in records:
        writer.append(one)
    disk_answers.set()
    writer.close()
    # Three batches make it more than two that wait; the other seven are dropped.
    assert writer.state.rows_dropped == 7 * BATCH_ROWS
    assert read(path) == [one.iteration for one in records[: 3 * BATCH_ROWS]]
    assert writer.state.error is None


def test_what_waits_is_handed_over_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    writer = StepTraceWriter(rotating(path))
    for one in load(3):
        writer.append(one)
    writer.flush()
    writer.flush()
    writer.close()
    assert read(path) == [1, 2, 3]
