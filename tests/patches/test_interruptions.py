"""A crash, a full disk or a read-only folder at any step: nothing half-done stays unnoticed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from patchtool.errors import (
    HalfAppliedError,
    PatchError,
    ReadOnlyTargetError,
    WriteFailedError,
)
from patchtool.exchange import Writer
from patchtool.inspection import Status
from patchtool.operations import revert
from patchtool.state import installed_series

from .world import (
    STOCK,
    CountingWriter,
    DyingWriter,
    FailingWriter,
    PowerCut,
    World,
    run_unprivileged,
    snapshot,
)

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.add_second()
    return world


def stock_part(world: World) -> dict[str, bytes]:
    files = snapshot(world.target)
    return {path: data for path, data in files.items() if not path.startswith(".echo_patches")}


def steps_of_apply(world: World) -> int:
    writer = CountingWriter()
    world.apply(writer)
    revert(world.target)
    return writer.steps


def test_a_crash_at_any_step_of_apply_is_seen_and_undone_by_revert(world: World) -> None:
    before = snapshot(world.target)
    seen = set()
    for steps in range(steps_of_apply(world)):
        with pytest.raises(PowerCut):
            world.apply(DyingWriter(steps))
        status = world.inspect().status
        untouched = stock_part(world) == before
        assert (status is Status.HALF_APPLIED) or untouched
        assert installed_series(world.target.root) is None
        if status is Status.HALF_APPLIED:
            with pytest.raises(HalfAppliedError, match="revert"):
                world.apply()
        seen.add((status, untouched))
        revert(world.target)
        world.apply()
        assert world.inspect().status is Status.APPLIED
        revert(world.target)
        assert snapshot(world.target) == before
    assert (Status.HALF_APPLIED, False) in seen
    assert (Status.NOT_APPLIED, True) in seen


def test_a_crash_at_any_step_of_revert_is_finished_by_another_revert(world: World) -> None:
    before = snapshot(world.target)
    world.apply()
    writer = CountingWriter()
    revert(world.target, writer=writer)
    for steps in range(writer.steps):
        world.apply()
        with pytest.raises(PowerCut):
            revert(world.target, writer=DyingWriter(steps))
        revert(world.target)
        assert snapshot(world.target) == before


def test_a_crash_while_replacing_an_older_series_reverts_to_stock(world: World) -> None:
    before = snapshot(world.target)
    series = world.patches / "series"

    def replace_older(writer: Writer) -> None:
        series.write_text("0001-first.patch\n")
        world.apply()
        series.write_text("0001-first.patch\n0002-second.patch\n")
        world.apply(writer)

    counting = CountingWriter()
    replace_older(counting)
    revert(world.target)
    for steps in range(counting.steps):
        with pytest.raises(PowerCut):
            replace_older(DyingWriter(steps))
        revert(world.target)
        assert snapshot(world.target) == before


def test_a_crash_of_a_crash_recovery_can_be_recovered(world: World) -> None:
    before = snapshot(world.target)
    with pytest.raises(PowerCut):
        world.apply(DyingWriter(steps_of_apply(world) - 2))
    with pytest.raises(PowerCut):
        revert(world.target, writer=DyingWriter(7))
    assert world.inspect().status is Status.HALF_APPLIED
    revert(world.target)
    assert snapshot(world.target) == before


def test_a_failed_write_at_any_step_is_rolled_back(world: World) -> None:
    before = snapshot(world.target)
    full = OSError(errno.ENOSPC, "No space left on device")
    for failing in range(1, steps_of_apply(world) + 1):
        with pytest.raises((WriteFailedError, ReadOnlyTargetError)):
            world.apply(FailingWriter(failing, full))
        assert snapshot(world.target) == before


def test_a_failed_write_while_reverting_leaves_the_series_applied(world: World) -> None:
    world.apply()
    applied = stock_part(world)
    writer = CountingWriter()
    revert(world.target, writer=writer)
    for failing in range(1, writer.steps + 1):
        world.apply()
        broken = OSError(errno.EIO, "Input/output error")
        with pytest.raises(PatchError):
            revert(world.target, writer=FailingWriter(failing, broken))
        assert stock_part(world) == applied
        assert world.inspect().status is Status.APPLIED


def test_a_file_system_mounted_read_only_is_reported_and_nothing_changes(world: World) -> None:
    class ReadOnlyDisk(Writer):
        def write(self, file: Path, data: bytes, *, mode: int = 0o644) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(file))

    before = snapshot(world.target)
    with pytest.raises(ReadOnlyTargetError, match="Nothing was changed"):
        world.apply(ReadOnlyDisk())
    assert snapshot(world.target) == before


def test_a_folder_without_write_permission_is_found_before_anything_changes() -> None:
    with tempfile.TemporaryDirectory(prefix="echo-read-only-") as base:
        world = World(Path(base))
        world.add_second()
        before = snapshot(world.target)
        os.chmod(base, 0o755)
        (world.target.root / "srt").chmod(0o555)
        world.target.root.chmod(0o555)

        def attempt() -> bytes:
            try:
                return world.apply().encode()
            except ReadOnlyTargetError as error:
                return b"refused: " + str(error).encode()

        message = run_unprivileged(attempt)
        assert message.startswith(b"refused: ")
        assert b"read-only for this user" in message
        assert snapshot(world.target) == before
        world.target.root.chmod(0o755)
        (world.target.root / "srt").chmod(0o755)


def test_an_edit_made_after_a_crash_is_not_lost_by_revert(world: World) -> None:
    with pytest.raises(PowerCut):
        world.apply(DyingWriter(steps_of_apply(world) - 2))
    file = world.target.root / "srt" / "scheduler.py"
    file.write_bytes(b"mine = 1\n")
    with pytest.raises(PatchError, match=r"scheduler\.py"):
        revert(world.target)
    assert file.read_bytes() == b"mine = 1\n"


def test_a_process_killed_between_two_files_is_detected_and_recovered(world: World) -> None:
    program = f"""
import os, sys
sys.path.insert(0, {str(SCRIPTS)!r})
from pathlib import Path
from patchtool import exchange, operations
from patchtool.series import load_pin, load_series
from patchtool.target import find_target
class Killed(exchange.Writer):
    moved = 0
    def replace(self, source, destination):
        super().replace(source, destination)
        if destination.name == "scheduler.py" and "originals" not in destination.parts:
            os._exit(9)
folder = Path({str(world.patches)!r})
operations.apply(find_target(Path({str(world.target.root)!r})), load_series(folder),
                 load_pin(folder), writer=Killed())
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 9
    assert world.inspect().status is Status.HALF_APPLIED
    revert(world.target)
    for path, data in STOCK.items():
        assert world.target.read(path) == data
