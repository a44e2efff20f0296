"""What apply refuses, by which error, without changing a byte; and what status says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from patchtool import cli
from patchtool.errors import (
    ConflictError,
    DirtyTargetError,
    MalformedPatchError,
    MissingTargetError,
    PatchError,
    SeriesError,
    TargetError,
    WrongVersionError,
)
from patchtool.inspection import Status
from patchtool.operations import revert
from patchtool.parse import parse
from patchtool.target import find_target

from .world import SCHEDULER, STOCK, World, snapshot, write_package

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "apply_patches.py"
ONE_LINE = b"--- a/sglang/x.py\n+++ b/sglang/x.py\n@@ -1 +1 @@\n-old\n+new\n"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def refused(world: World, error: type[PatchError], message: str) -> None:
    before = snapshot(world.target)
    with pytest.raises(error, match=message):
        world.apply()
    assert snapshot(world.target) == before


def edit_patch(world: World, old: bytes, new: bytes) -> None:
    patch = world.patches / "0001-first.patch"
    assert old in patch.read_bytes()
    patch.write_bytes(patch.read_bytes().replace(old, new))


def test_another_version_is_refused_naming_both(world: World) -> None:
    write_package(world.base / "target", STOCK, version="1.2.2")
    assert world.inspect().status is Status.WRONG_VERSION
    refused(world, WrongVersionError, r"is SGLang 1\.2\.2; the patches are made for 1\.2\.3")


def test_a_locally_edited_file_is_refused_and_named(world: World) -> None:
    world.target.file(SCHEDULER).write_bytes(STOCK[SCHEDULER] + b"mine = 1\n")
    found = world.inspect()
    assert (found.status, found.offending) == (Status.DIRTY, (SCHEDULER,))
    refused(world, DirtyTargetError, "sglang/srt/scheduler.py in ")


def test_an_edit_where_no_patch_goes_is_none_of_our_business(world: World) -> None:
    world.target.file("sglang/srt/unused.py").write_bytes(b"mine = 1\n")
    world.apply()
    assert world.inspect().status is Status.APPLIED


def test_an_edit_after_apply_is_dirty_and_survives_apply_and_revert(world: World) -> None:
    world.apply()
    world.target.file(SCHEDULER).write_bytes(b"mine = 1\n")
    assert world.inspect().offending == (SCHEDULER,)
    refused(world, DirtyTargetError, r"scheduler\.py")
    with pytest.raises(DirtyTargetError, match="would lose the edit"):
        revert(world.target)
    assert world.target.read(SCHEDULER) == b"mine = 1\n"


def test_a_file_that_a_patch_adds_must_not_be_there_already(world: World) -> None:
    world.add_second()
    (world.target.root / "echo").mkdir()
    (world.target.root / "echo" / "seam.py").write_bytes(b"someone else's\n")
    refused(world, DirtyTargetError, r"sglang/echo/seam\.py")


def test_a_missing_file_is_dirty(world: World) -> None:
    world.target.file(SCHEDULER).unlink()
    refused(world, DirtyTargetError, r"scheduler\.py")


def test_a_missing_package_says_what_a_target_may_be(tmp_path: Path) -> None:
    with pytest.raises(MissingTargetError, match="python/sglang"):
        find_target(tmp_path)


def test_a_damaged_backup_stops_revert_before_it_writes(world: World) -> None:
    world.apply()
    backup = world.target.root / ".echo_patches" / "originals" / SCHEDULER
    backup.write_bytes(b"damaged")
    before = snapshot(world.target)
    with pytest.raises(DirtyTargetError, match="missing or altered"):
        revert(world.target)
    assert snapshot(world.target) == before


def test_a_damaged_record_is_reported(world: World) -> None:
    world.apply()
    (world.target.root / ".echo_patches.json").write_text("{")
    with pytest.raises(DirtyTargetError, match="is damaged"):
        world.inspect()


def test_a_context_line_that_differs_is_named_with_expected_and_found(world: World) -> None:
    edit_patch(world, b" line_4 = 4", b" line_4 = 44")
    message = r"scheduler\.py, hunk 1, line 4: expected 'line_4 = 44', found 'line_4 = 4'"
    refused(world, ConflictError, message)


def test_a_hunk_one_line_off_is_refused(world: World) -> None:
    edit_patch(world, b"@@ -2,7 +2,8 @@", b"@@ -3,7 +3,8 @@")
    refused(world, ConflictError, r"line 3: expected 'line_2 = 2', found 'line_3 = 3'")


def test_a_file_that_is_not_pinned_is_refused(world: World) -> None:
    (world.patches / "pin.json").write_text('{"sglang": "1.2.3", "files": {}}')
    refused(world, SeriesError, "pin.json does not list sglang/srt/scheduler.py")


def test_a_listed_patch_that_is_missing_is_refused(world: World) -> None:
    (world.patches / "series").write_text("0001-first.patch\n0002-gone.patch\n")
    refused(world, SeriesError, r"0002-gone\.patch")


@pytest.mark.parametrize("name", ["../0001-first.patch", "first.patch", "0001-First.patch"])
def test_a_name_in_the_series_that_is_no_patch_name_is_refused(world: World, name: str) -> None:
    (world.patches / "series").write_text(f"{name}\n")
    refused(world, SeriesError, "is no patch name")


@pytest.mark.parametrize(
    "path",
    [
        "etc/passwd",
        "/etc/passwd",
        "sglang/../../etc/passwd",
        "sglang//x.py",
        "sglang/./x.py",
        "sglang",
        "sglang\\..\\x.py",
        "sglang/.echo_patches.json",
        "sglang/.echo_patches/journal.json",
    ],
)
def test_a_path_outside_of_the_package_is_refused(path: str) -> None:
    body = ONE_LINE.replace(b"sglang/x.py", path.encode())
    with pytest.raises(MalformedPatchError, match=r"p\.patch:2: the path .* is not inside sglang"):
        parse(body, name="p.patch")


def test_a_symbolic_link_that_leads_out_of_the_package_is_not_followed(world: World) -> None:
    outside = world.base / "outside"
    (world.target.root / "srt").rename(outside)
    (world.target.root / "srt").symlink_to(outside)
    with pytest.raises(TargetError, match="symbolic link"):
        world.apply()
    assert (outside / "scheduler.py").read_bytes() == STOCK[SCHEDULER]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"+new\n", b"", "ends in the middle"),
        (b"+new\n", b"+new\n+more\n", "expected '--- a/sglang"),
        (b"-old\n", b"-old\n-old\n", "counts in the hunk header"),
        (b"-old\n", b"\n", "an empty context line is one space"),
        (b"-old\n+new\n", b" old\n", "counts in the hunk header"),
        (b"@@ -1 +1 @@", b"@@ 1 1 @@", "not a hunk header"),
        (b"+1 @@", b"+7 @@", "do not add up"),
        (b"--- a/sglang/x.py", b"--- a/sglang/y.py", "rename"),
        (b"a/sglang/x.py", b"sglang/x.py", "beginning with a/"),
        (b"a/sglang/x.py", b"a/sglang/x.py\t2026-01-01", "becomes"),
        (b"@@ -1 +1 @@\n-old\n+new\n", b"", "has no hunk"),
        (b"+new\n", b"+new", "starting with ' ', '-' or '\\+'"),
        (ONE_LINE, ONE_LINE + ONE_LINE, "appears twice"),
    ],
)
def test_a_malformed_patch_is_refused_naming_the_line(old: bytes, new: bytes, message: str) -> None:
    with pytest.raises(MalformedPatchError, match=rf"p\.patch:\d+: .*{message}"):
        parse(ONE_LINE.replace(old, new, 1), name="p.patch")


def test_a_patch_converted_to_crlf_is_refused(world: World) -> None:
    edit_patch(world, b"\n", b"\r\n")
    refused(world, MalformedPatchError, "CRLF")


def test_the_command_line_maps_every_status_to_its_exit_code(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", str(world.target.root), "--patches", str(world.patches)]

    def status() -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main(["status", "--json", *options])
        return code, json.loads(capsys.readouterr().out)["status"]

    assert status() == (3, "not applied")
    assert cli.main(["apply", *options]) == 0
    assert status() == (0, "applied")
    world.add_second()
    assert status() == (4, "older series")
    assert cli.main(["apply", *options]) == 0
    world.target.file(SCHEDULER).write_bytes(b"")
    assert status() == (5, "dirty")
    assert cli.main(["apply", *options]) == 5
    journal = world.target.root / ".echo_patches" / "journal.json"
    journal.write_bytes((world.target.root / ".echo_patches.json").read_bytes())
    assert status() == (6, "half-applied")
    assert cli.main(["apply", *options]) == 6
    journal.unlink()
    write_package(world.base / "target", STOCK, version="9.9")
    assert status() == (7, "wrong version")
    assert cli.main(["apply", *options]) == 7
    assert cli.main(["status", "--target", str(world.base), "--patches", str(world.patches)]) == 9


def test_the_script_runs_alone_and_imports_no_sglang(world: World) -> None:
    package = world.base / "site"
    write_package(package, {**STOCK, "sglang/__init__.py": b"raise SystemExit('imported')\n"})
    command = [sys.executable, "-S", str(SCRIPT), "status", "--patches", str(world.patches)]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(package)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert str(package) in done.stdout


def test_the_tool_needs_the_standard_library_only() -> None:
    package = SCRIPT.parent / "patchtool"
    for module in package.glob("*.py"):
        for line in module.read_text().splitlines():
            if line.startswith(("import ", "from ")) and not line.startswith("from ."):
                top = line.split()[1].split(".")[0]
                assert top in sys.stdlib_module_names, f"{module.name}: {line}"
