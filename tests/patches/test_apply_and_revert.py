"""apply and revert on an intact package: bytes, record, idempotence, newer series."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from patchtool.errors import BusyTargetError, ConflictError
from patchtool.inspection import Status
from patchtool.operations import revert
from patchtool.state import installed_series
from patchtool.target import find_target

from .world import (
    FIRST_EDIT,
    SCHEDULER,
    SECOND_EDIT,
    STOCK,
    CountingWriter,
    World,
    snapshot,
    write_package,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_apply_gives_the_edited_bytes_and_touches_nothing_else(world: World) -> None:
    before = snapshot(world.target)
    world.apply()
    after = snapshot(world.target)
    changed = {path for path in after if after[path] != before.get(path)}
    ours = {path for path in changed if path.startswith(".echo_patches")}
    assert changed - ours == {"srt/scheduler.py", "srt/windows.py"}
    for path, data in FIRST_EDIT.items():
        assert world.target.read(path) == data


def test_revert_restores_every_byte_mode_and_time_and_leaves_no_record(world: World) -> None:
    world.add_second()
    before = snapshot(world.target)
    file = world.target.file(SCHEDULER)
    file.chmod(0o640)
    os.utime(file, ns=(10**18, 10**18))
    world.apply()
    assert file.stat().st_mode & 0o777 == 0o640
    assert file.stat().st_mtime_ns > 10**18
    revert(world.target)
    assert snapshot(world.target) == before
    assert (file.stat().st_mode & 0o777, file.stat().st_mtime_ns) == (0o640, 10**18)
    assert not (world.target.root / "echo").exists()
    assert not (world.target.root / ".echo_patches").exists()


def test_patches_may_add_and_remove_files_and_lack_the_last_newline(world: World) -> None:
    world.add_second()
    world.apply()
    for path, data in {**FIRST_EDIT, **SECOND_EDIT}.items():
        assert world.target.read(path) == data


def test_apply_twice_writes_nothing_the_second_time(world: World) -> None:
    world.apply()
    once = snapshot(world.target)
    writer = CountingWriter()
    assert world.apply(writer).startswith("already applied")
    assert writer.steps == 0
    assert snapshot(world.target) == once


def test_revert_of_a_stock_package_says_so_and_writes_nothing(world: World) -> None:
    writer = CountingWriter()
    assert revert(world.target, writer=writer).startswith("not applied")
    assert writer.steps == 0


def test_a_newer_series_replaces_an_older_one_and_still_reverts_to_stock(world: World) -> None:
    before = snapshot(world.target)
    world.apply()
    older = installed_series(world.target.root)
    world.add_second()
    assert world.inspect().status is Status.OLDER_SERIES
    assert f"in place of {older}" in world.apply()
    assert world.inspect().status is Status.APPLIED
    assert world.target.read(SCHEDULER) == SECOND_EDIT[SCHEDULER]
    revert(world.target)
    assert snapshot(world.target) == before


def test_a_series_that_no_longer_touches_a_file_gives_it_back(world: World) -> None:
    world.add_second()
    world.apply()
    (world.patches / "series").write_text("0001-first.patch\n")
    world.apply()
    assert world.target.read("sglang/srt/unused.py") == STOCK["sglang/srt/unused.py"]
    assert world.target.read("sglang/echo/seam.py") is None
    assert not (world.target.root / "echo").exists()
    assert world.inspect().status is Status.APPLIED


def test_the_record_names_series_patches_and_digests(world: World) -> None:
    world.apply()
    state = json.loads((world.target.root / ".echo_patches.json").read_text())
    assert state["series_id"] == installed_series(world.target.root)
    assert list(state["patches"]) == ["0001-first.patch"]
    assert set(state["files"]) == set(FIRST_EDIT)


def test_installed_series_is_none_on_a_stock_package(world: World) -> None:
    assert installed_series(world.target.root) is None


def test_a_reworded_header_needs_no_new_application(world: World) -> None:
    world.apply()
    patch = world.patches / "0001-first.patch"
    patch.write_bytes(patch.read_bytes().replace(b"a test needs it", b"another reason"))
    assert world.inspect().status is Status.APPLIED


@pytest.mark.parametrize("shape", ["package", "folder", "checkout"])
def test_a_target_may_be_the_package_its_folder_or_a_checkout(tmp_path: Path, shape: str) -> None:
    inner = tmp_path / "python" if shape == "checkout" else tmp_path
    root = write_package(inner, STOCK).root
    given = root if shape == "package" else tmp_path
    assert find_target(given).root == root


def test_a_hard_linked_file_is_replaced_and_not_written_through(world: World) -> None:
    cache = world.base / "cache.py"
    os.link(world.target.file(SCHEDULER), cache)
    world.apply()
    assert cache.read_bytes() == STOCK[SCHEDULER]


def test_compiled_files_of_an_added_module_go_with_it(world: World) -> None:
    world.add_second()
    world.apply()
    cache = world.target.root / "echo" / "__pycache__"
    cache.mkdir()
    (cache / "seam.cpython-311.pyc").write_bytes(b"compiled")
    revert(world.target)
    assert not (world.target.root / "echo").exists()


def test_a_second_run_at_the_same_time_is_refused(world: World) -> None:
    with world.target.lock(), pytest.raises(BusyTargetError):
        world.apply()


def test_nothing_is_written_when_the_last_patch_conflicts(world: World) -> None:
    world.add_second()
    patch = world.patches / "0002-second.patch"
    patch.write_bytes(patch.read_bytes().replace(b"-line_30 = 30", b"-line_30 = 31"))
    before = snapshot(world.target)
    with pytest.raises(ConflictError, match=r"scheduler\.py, hunk 1, line 31: .*31.*found.*30"):
        world.apply()
    assert snapshot(world.target) == before


def test_after_a_reinstallation_of_the_same_release_apply_starts_afresh(world: World) -> None:
    world.add_second()
    world.apply()
    # pip puts its own files back and leaves ours: the record and the added module.
    write_package(world.base / "target", STOCK)
    assert world.inspect().status is Status.NOT_APPLIED
    world.apply()
    assert world.inspect().status is Status.APPLIED
    revert(world.target)
    assert world.target.read("sglang/echo/seam.py") is None


def test_after_an_upgrade_revert_only_removes_what_was_left_behind(world: World) -> None:
    world.add_second()
    world.apply()
    upgraded = {**STOCK, SCHEDULER: b"rewritten = True\n"}
    write_package(world.base / "target", upgraded, version="1.3.0")
    assert world.inspect().status is Status.WRONG_VERSION
    revert(world.target)
    assert world.target.read(SCHEDULER) == b"rewritten = True\n"
    assert world.target.read("sglang/echo/seam.py") is None
    assert not (world.target.root / ".echo_patches.json").exists()
