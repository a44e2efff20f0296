"""Files in and out, in a folder and in S3."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from echo_sglang.service.contents import LocalContents
from echo_sglang.service.errors import (
    InvalidInputError,
    NotFoundError,
    StoreBusyError,
    StoreFullError,
    StoreIOError,
    TooLargeError,
)
from echo_sglang.service.files import DEFAULT_LIFETIME_S, Files
from echo_sglang.service.model import FileObject
from echo_sglang.service.store import Store, open_store

DAY_S = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Store]:
    store = open_store(tmp_path)
    yield store
    store.close()


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def files(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    opened: Store,
    clock: Clock,
) -> Files:
    if request.param == "folder":
        return Files(opened, tmp_path, clock=clock, max_upload_bytes=1000)
    url = request.getfixturevalue("s3_url")
    return Files(opened, tmp_path, url, clock=clock, max_upload_bytes=1000)


def put(files: Files, data: bytes, **values: object) -> FileObject:
    upload = files.begin(**{"owner": "", "filename": "in.jsonl", "purpose": "batch", **values})
    for start in range(0, len(data), 7):
        upload.write(data[start : start + 7])
    return upload.finish()


def test_what_goes_in_comes_out_from_any_byte(files: Files) -> None:
    data = bytes(range(256)) * 3
    file = put(files, data)
    assert file.size_bytes == len(data)
    assert b"".join(files.read(file)) == data
    assert b"".join(files.read(file, 700)) == data[700:]
    assert files.get("", file.id) == file


def test_an_input_can_be_read_in_place(files: Files) -> None:
    file = put(files, b"abc\n")
    path = files.local_path(file.id)
    assert path.read_bytes() == b"abc\n"
    assert files.local_path(file.id) == path
    files.drop_copy(file.id)
    assert b"".join(files.read(file)) == b"abc\n"


def test_a_deleted_file_is_gone(files: Files) -> None:
    file = put(files, b"abc")
    files.delete("", file.id)
    with pytest.raises(NotFoundError):
        files.get("", file.id)
    with pytest.raises(NotFoundError):
        list(files.read(file))


def test_a_result_file_is_whole_and_seen_only_with_its_row(files: Files, opened: Store) -> None:
    file = files.write_result("", f"file-{1:032x}", "out.jsonl", iter([b"1", b"22"]), 60.0)
    assert (file.size_bytes, file.purpose) == (5, "batch_output")
    with pytest.raises(NotFoundError):
        files.get("", file.id)
    opened.files.add(file)
    assert b"".join(files.read(files.get("", file.id))) == b"1\n22\n"


def test_writing_a_result_again_replaces_it_whole(files: Files) -> None:
    files.write_result("", f"file-{1:032x}", "out.jsonl", [b"torn"], 60.0)
    file = files.write_result("", f"file-{1:032x}", "out.jsonl", [b"1", b"2"], 60.0)
    assert b"".join(files.read(file)) == b"1\n2\n"

    def broken() -> Iterator[bytes]:
        yield b"1"
        raise StoreBusyError("the database is gone")

    with pytest.raises(StoreBusyError):
        files.write_result("", file.id, "out.jsonl", broken(), 60.0)
    assert b"".join(files.read(file)) == b"1\n2\n"


def test_an_upload_that_is_too_large_leaves_nothing(files: Files, tmp_path: Path) -> None:
    upload = files.begin("", "in.jsonl", "batch")
    upload.write(b"x" * 1000)
    with pytest.raises(TooLargeError, match="more than 1,000 bytes"):
        upload.write(b"x")
    upload.abort()
    upload.abort()
    assert list((tmp_path / "files").glob("*")) == []


def test_files_expire_after_thirty_days_or_as_asked(files: Files, clock: Clock) -> None:
    usual = put(files, b"a")
    short = put(files, b"b", lifetime_s=3600)
    assert usual.expires_at == clock.now + DEFAULT_LIFETIME_S
    clock.now += 3600
    with pytest.raises(NotFoundError, match="has expired"):
        files.get("", short.id)
    assert files.sweep() == 1
    assert b"".join(files.read(usual)) == b"a"
    with pytest.raises(NotFoundError):
        list(files.read(short))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"filename": "in.txt"}, "does not end in .jsonl"),
        ({"filename": ""}, "does not end in .jsonl"),
        ({"filename": ".."}, "does not end in .jsonl"),
        ({"filename": "a\x00.jsonl"}, "cannot be printed"),
        ({"filename": "\udc80.jsonl"}, "cannot be printed"),
        ({"filename": "x" * 300 + ".jsonl"}, "255 at most"),
        ({"purpose": "fine-tune"}, "is not one of: batch"),
        ({"lifetime_s": 3599}, "from 3600 to 2592000"),
        ({"lifetime_s": 2_592_001}, "from 3600 to 2592000"),
    ],
)
def test_what_an_upload_may_not_be(
    opened: Store, tmp_path: Path, values: dict[str, object], message: str
) -> None:
    files = Files(opened, tmp_path, clock=Clock())
    with pytest.raises(InvalidInputError, match=message):
        put(files, b"x", **values)


@pytest.mark.parametrize("name", ["../../etc/x.jsonl", "..\\..\\x.jsonl", "/abs/x.jsonl"])
def test_a_path_in_a_name_leads_nowhere(opened: Store, tmp_path: Path, name: str) -> None:
    files = Files(opened, tmp_path, clock=Clock())
    file = put(files, b"x", filename=name)
    assert file.filename == "x.jsonl"
    assert [path.name for path in (tmp_path / "files").iterdir()] == [file.id]


def test_a_link_in_place_of_a_file_is_not_followed(opened: Store, tmp_path: Path) -> None:
    files = Files(opened, tmp_path, clock=Clock())
    file = put(files, b"x")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = tmp_path / "files" / file.id
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(StoreIOError):
        list(files.read(file))


def test_bytes_that_a_crash_left_are_swept_when_a_day_old(opened: Store, tmp_path: Path) -> None:
    clock = Clock()
    files = Files(opened, tmp_path, clock=clock)
    kept = put(files, b"kept")
    files.begin("", "in.jsonl", "batch").write(b"half")
    files.write_result("", f"file-{1:032x}", "out.jsonl", [b"1"], 60.0)
    for path in (tmp_path / "files").iterdir():
        os.utime(path, (clock.now, clock.now))
    assert files.sweep() == 0
    clock.now += DAY_S + 1
    assert files.sweep() == 2
    assert [path.name for path in (tmp_path / "files").iterdir()] == [kept.id]


def test_a_full_disk_and_a_failing_one_are_told_apart(tmp_path: Path) -> None:
    for number, kind in ((28, StoreFullError), (5, StoreIOError)):

        def fail(_descriptor: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        writer = LocalContents(tmp_path, fsync=fail).create("one")
        writer.write(b"x")
        with pytest.raises(kind):
            writer.finish()
        writer.abort()
        assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_file(opened: Store, tmp_path: Path) -> None:
    files = Files(opened, tmp_path, clock=Clock())
    tracemalloc.start()
    upload = files.begin("", "in.jsonl", "batch")
    for _ in range(64):
        upload.write(b"x" * (1 << 20))
    file = upload.finish()
    assert sum(len(piece) for piece in files.read(file)) == 64 << 20
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20
