"""refresh, check and the rehearsal of another release."""

from __future__ import annotations

import runpy
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from patchtool import cli
from patchtool.check import check
from patchtool.errors import (
    ConflictError,
    DirtyTargetError,
    MissingTargetError,
    UsageError,
    WrongVersionError,
)
from patchtool.operations import revert
from patchtool.refresh import refresh
from patchtool.rehearse import open_release, rehearse
from patchtool.series import load_pin, load_series, sha256
from patchtool.target import Target

from .world import FIRST_EDIT, HEADER, SCHEDULER, SECOND_EDIT, STOCK, World, write_package


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def body_of(world: World, name: str) -> bytes:
    return (world.patches / name).read_bytes().partition(b"\n\n")[2]


def edited_tree(world: World, files: Mapping[str, bytes | None], name: str = "work") -> Path:
    write_package(world.base / name, files)
    return world.base / name


def test_a_patch_is_exported_in_the_one_canonical_form(world: World) -> None:
    assert body_of(world, "0001-first.patch") == (
        b"--- a/sglang/srt/scheduler.py\n+++ b/sglang/srt/scheduler.py\n@@ -2,7 +2,8 @@\n"
        b" line_2 = 2\n line_3 = 3\n line_4 = 4\n-line_5 = 5\n+line_50 = 50\n+added = 1\n"
        b" line_6 = 6\n line_7 = 7\n line_8 = 8\n"
        b"--- a/sglang/srt/windows.py\n+++ b/sglang/srt/windows.py\n@@ -1,3 +1,3 @@\n"
        b" a = 1\r\n-b = 2\r\n+b = 20\r\n c = 3\r\n"
    ).replace(b"line_50 = 50", b"line_5 = 50")


def test_refresh_keeps_the_header_and_appends_a_new_patch_to_the_series(world: World) -> None:
    world.add_second()
    text = (world.patches / "0002-second.patch").read_bytes()
    assert text.startswith(HEADER % b"0002-second.patch")
    assert [patch.name for patch in load_series(world.patches).patches] == [
        "0001-first.patch",
        "0002-second.patch",
    ]


def test_the_header_may_end_with_three_dashes_and_carry_prose(world: World) -> None:
    patch = world.patches / "0001-first.patch"
    head, _, body = patch.read_bytes().partition(b"\n\n")
    patch.write_bytes(head + b"\n---\nAny: prose\nabout it\n" + body)
    assert load_series(world.patches).patches[0].fields["Used-By"] == "tests"
    assert check(world.patches, world.stock) == []


def test_refresh_twice_changes_nothing(world: World) -> None:
    assert refresh(world.patches, world.stock) == ["everything is up to date"]


def test_refresh_works_from_a_patched_target_as_from_a_stock_one(world: World) -> None:
    world.apply()
    assert refresh(world.patches, world.target) == ["everything is up to date"]


def test_a_tree_that_started_from_stock_is_laid_over_the_earlier_patches(world: World) -> None:
    own_edit = STOCK[SCHEDULER].replace(b"line_30 = 30\n", b"")
    edited = edited_tree(world, {**STOCK, SCHEDULER: own_edit})
    (world.patches / "0002-own.patch").write_bytes(HEADER % b"own")
    refresh(world.patches, world.stock, name="0002", edited=edited, from_stock=True)
    patched = load_series(world.patches).apply(world.stock.read)
    assert patched[SCHEDULER] == SECOND_EDIT[SCHEDULER]
    assert patched["sglang/srt/windows.py"] == FIRST_EDIT["sglang/srt/windows.py"]


def test_a_tree_that_lacks_an_earlier_patch_brings_a_notice(world: World) -> None:
    edited = edited_tree(world, {**STOCK, SCHEDULER: STOCK[SCHEDULER] + b"more = 1\n"})
    (world.patches / "0002-own.patch").write_bytes(HEADER % b"own")
    lines = refresh(world.patches, world.stock, name="0002", edited=edited)
    assert any("takes back lines of an earlier patch" in line for line in lines)


def test_later_patches_follow_when_an_earlier_one_moves_their_lines(world: World) -> None:
    world.add_second()
    longer = FIRST_EDIT[SCHEDULER].replace(b"added = 1\n", b"added = 1\nmore = 2\n")
    edited = edited_tree(world, {**STOCK, **FIRST_EDIT, SCHEDULER: longer})
    lines = refresh(world.patches, world.stock, name="0001", edited=edited)
    assert "notice: 0002-second.patch was exported anew (moved lines or another form)" in lines
    patched = load_series(world.patches).apply(world.stock.read)
    assert patched[SCHEDULER] == longer.replace(b"line_30 = 30\n", b"")
    assert check(world.patches, world.stock) == []


def test_nothing_is_rewritten_when_a_later_patch_no_longer_fits(world: World) -> None:
    world.add_second()
    files = {path: path.read_bytes() for path in world.patches.iterdir()}
    other = FIRST_EDIT[SCHEDULER].replace(b"line_29 = 29", b"line_29 = 0")
    edited = edited_tree(world, {**STOCK, **FIRST_EDIT, SCHEDULER: other})
    with pytest.raises(ConflictError, match=r"0002-second\.patch .*line_29"):
        refresh(world.patches, world.stock, name="0001", edited=edited)
    assert {path: path.read_bytes() for path in world.patches.iterdir()} == files


@pytest.mark.parametrize(
    ("name", "edited", "message"),
    [
        ("0001", None, "together"),
        ("0009", "stock", "names 0 patches"),
        ("0001", "stock", "are both"),
        ("0001", "target", "has no change"),
    ],
)
def test_refresh_refuses_arguments_that_make_no_sense(
    world: World, name: str, edited: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        folder = world.base / edited if edited else None
        refresh(world.patches, world.stock, name=name, edited=folder)


def test_refresh_refuses_another_release_unless_told_to_move_the_pin(world: World) -> None:
    newer = write_package(
        world.base / "newer", {**STOCK, SCHEDULER: b"#\n" + STOCK[SCHEDULER]}, "2"
    )
    with pytest.raises(WrongVersionError, match="--repin"):
        refresh(world.patches, newer)
    refresh(world.patches, newer, repin=True)
    assert load_pin(world.patches).version == "2"
    assert check(world.patches, newer) == []


def test_refresh_refuses_a_stock_file_that_differs_from_the_pin(world: World) -> None:
    world.stock.file(SCHEDULER).write_bytes(STOCK[SCHEDULER] + b"#\n")
    with pytest.raises(DirtyTargetError, match="pristine"):
        refresh(world.patches, world.stock)


def test_refresh_refuses_a_file_that_pip_did_not_install_like_this(world: World) -> None:
    metadata = world.stock.root.parent / "sglang-1.2.3.dist-info"
    metadata.mkdir()
    (metadata / "RECORD").write_text(f"{SCHEDULER},sha256=AAAA,1\n")
    with pytest.raises(DirtyTargetError, match="not the file that was installed"):
        refresh(world.patches, world.stock)


def test_the_generated_module_states_release_series_and_digests(world: World) -> None:
    module = world.base / "project" / "echo_sglang" / "adapter" / "patch_series.py"
    names = runpy.run_path(str(module))
    assert names["SUPPORTED_SGLANG"] == "1.2.3"
    assert names["SERIES_ID"] == load_series(world.patches).id
    assert names["PATCHED_FILES"] == {path: sha256(data) for path, data in FIRST_EDIT.items()}


def test_check_accepts_a_series_in_order_on_a_stock_and_on_a_patched_target(world: World) -> None:
    world.add_second()
    assert check(world.patches, world.target) == []
    world.apply()
    assert check(world.patches, world.target) == []
    revert(world.target)


def break_header(world: World) -> None:
    patch = world.patches / "0001-first.patch"
    patch.write_bytes(patch.read_bytes().replace(b"Used-By: tests\n", b""))


def break_listing(world: World) -> None:
    (world.patches / "0007-forgotten.patch").write_bytes(HEADER % b"forgotten")


def break_form(world: World) -> None:
    patch = world.patches / "0001-first.patch"
    patch.write_bytes(patch.read_bytes().replace(b"@@ -1,3 +1,3 @@", b"@@ -1,3 +1,3 @@ heading"))


def break_table(world: World) -> None:
    readme = world.patches / "README.md"
    readme.write_text(readme.read_text().replace("a test needs it", "some other reason"))


def break_module(world: World) -> None:
    module = world.base / "project" / "echo_sglang" / "adapter" / "patch_series.py"
    module.write_text(module.read_text().replace("SERIES_ID", "OTHER_ID"))


def break_python(world: World) -> None:
    patch = world.patches / "0001-first.patch"
    patch.write_bytes(patch.read_bytes().replace(b"+added = 1", b"+added = ("))


def break_fit(world: World) -> None:
    patch = world.patches / "0001-first.patch"
    patch.write_bytes(patch.read_bytes().replace(b" line_4 = 4", b" line_4 = 44"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_header, "0001-first.patch: the header lacks Used-By"),
        (break_listing, "0007-forgotten.patch is not listed"),
        (break_form, "0001-first.patch is not as exported"),
        (break_table, "README.md is out of date"),
        (break_module, "patch_series.py is out of date"),
        (break_python, "scheduler.py does not compile"),
        (break_fit, "0001-first.patch does not fit"),
    ],
)
def test_check_names_every_defect(
    world: World, damage: Callable[[World], None], message: str
) -> None:
    damage(world)
    assert any(message in defect for defect in check(world.patches, world.stock))
    options = ["--patches", str(world.patches), "--target", str(world.stock.root)]
    assert cli.main(["check", *options]) == 1


def release(world: World, files: Mapping[str, bytes | None]) -> Target:
    return write_package(world.base / "other", {**STOCK, **files}, version="1.2.2")


def test_a_rehearsal_reports_what_applies_and_with_which_offset(world: World) -> None:
    world.add_second()
    moved = b"# one\n# two\n" + STOCK[SCHEDULER]
    target = release(world, {SCHEDULER: moved})
    first, second = rehearse(load_series(world.patches), target.read)
    assert str(first) == "0001-first.patch: applies with offset (sglang/srt/scheduler.py +2)"
    assert str(second) == "0002-second.patch: applies with offset (sglang/srt/scheduler.py +2)"


def test_a_rehearsal_names_the_first_conflict_and_goes_on(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.add_second()
    changed = b"# one\n" + STOCK[SCHEDULER].replace(b"line_6 = 6", b"line_6 = 7")
    other = release(world, {SCHEDULER: changed, "sglang/srt/unused.py": None})
    before = {path: path.read_bytes() for path in other.root.rglob("*.py")}
    command = ["check", "--patches", str(world.patches), "--against", str(world.base / "other")]
    assert cli.main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "0001-first.patch: CONFLICT in sglang/srt/scheduler.py, hunk 1, line 7: "
        "expected 'line_6 = 6', found 'line_6 = 7'"
    )
    assert lines[1] == (
        "0002-second.patch: CONFLICT in sglang/srt/unused.py, hunk 1, line 1: "
        "expected a file, found no file"
    )
    assert {path: path.read_bytes() for path in other.root.rglob("*.py")} == before


def test_a_rehearsal_on_the_pinned_release_itself_succeeds(world: World) -> None:
    command = ["check", "--patches", str(world.patches), "--against", str(world.stock.root)]
    assert cli.main(command) == 0


def test_a_rehearsal_reads_a_wheel(world: World) -> None:
    wheel = world.base / "sglang-1.2.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in STOCK.items():
            archive.writestr(path, data)
    read = open_release(str(wheel))
    assert [r.conflict for r in rehearse(load_series(world.patches), read)] == [None]
    assert read("sglang/absent.py") is None


def test_a_wheel_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(MissingTargetError, match="no wheel or folder"):
        open_release(str(tmp_path / "absent.whl"))
