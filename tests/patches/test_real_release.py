"""The project's own patches on the installed SGLang; its files are only read."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from patchtool.check import check
from patchtool.cli import default_folder
from patchtool.inspection import stock_view
from patchtool.operations import apply, revert
from patchtool.refresh import refresh
from patchtool.series import load_pin, load_series, sha256
from patchtool.state import installed_series
from patchtool.target import Target, find_target

from .world import HEADER

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sglang") is None, reason="sglang is not installed"
)
BIG_FILE = "sglang/srt/managers/scheduler.py"


def copy_of(paths: list[str], base: Path) -> Target:
    """The released bytes of some files of the installed package, with its version file."""
    view = stock_view(find_target(None))
    for path in ["sglang/__init__.py", "sglang/_version.py", *paths]:
        data = view.read(path)
        if data is not None:
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            (base / path).write_bytes(data)
    return find_target(base)


def test_the_patch_set_of_the_project_is_in_order() -> None:
    assert check(default_folder(), find_target(None)) == []


def test_the_series_applies_to_and_reverts_from_the_released_files(tmp_path: Path) -> None:
    series, pin = load_series(default_folder()), load_pin(default_folder())
    target = copy_of(series.paths, tmp_path)
    apply(target, series, pin)
    assert installed_series(target.root) == series.id
    revert(target)
    assert {path: sha256(target.read(path)) for path in series.paths} == pin.files


def test_an_edit_of_a_large_released_file_round_trips(tmp_path: Path) -> None:
    stock = copy_of([BIG_FILE], tmp_path / "stock")
    edited = copy_of([BIG_FILE], tmp_path / "edited")
    lines = stock.file(BIG_FILE).read_bytes().splitlines(keepends=True)
    at = len(lines) // 2
    changed = [b"# top\n", *lines[:at], *lines[at + 2 :], b"# end"]
    edited.file(BIG_FILE).write_bytes(b"".join(changed))
    folder = tmp_path / "patches"
    shutil.copytree(default_folder(), folder, ignore=shutil.ignore_patterns("*.patch", "*.json"))
    (folder / "series").write_text("")
    (folder / "0001-example.patch").write_bytes(HEADER % b"example")
    refresh(folder, stock, name="0001", edited=edited.root)
    apply(stock, load_series(folder), load_pin(folder))
    assert stock.file(BIG_FILE).read_bytes() == b"".join(changed)
    revert(stock)
    assert stock.file(BIG_FILE).read_bytes() == b"".join(lines)
