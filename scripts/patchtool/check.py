"""Is the patch set in order? Headers, round trip, generated files."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

from .diff import compare_file, render
from .errors import PatchError
from .generated import generated_files
from .inspection import StockView, check_pin, stock_view
from .operations import apply, revert
from .series import Pin, Series, apply_patch, load_pin, load_series
from .state import installed_series
from .target import Target


def check(folder: Path, target: Target) -> list[str]:
    """Every defect as one line; [] when all is well.

    Raises PatchError when `folder` or `target` is in no state to be checked at all.
    """
    series, pin = load_series(folder), load_pin(folder)
    view = stock_view(target)
    stock = {path: view.read(path) for path in series.paths}
    check_pin(target, stock, pin)
    defects = [*_listing_defects(series), *_header_defects(series)]
    export_defects, patched = _export_defects(series, stock)
    defects += export_defects
    if patched is not None:
        defects += _compile_defects(patched)
        defects += _round_trip_defects(series, pin, stock, patched, view)
        defects += _generated_defects(series, pin, patched)
    return defects


def _listing_defects(series: Series) -> list[str]:
    listed = {patch.name for patch in series.patches}
    present = {path.name for path in series.folder.glob("*.patch")}
    return [f"{name} is not listed in patches/series" for name in sorted(present - listed)]


def _header_defects(series: Series) -> list[str]:
    return [
        f"{patch.name}: the header lacks {', '.join(patch.missing_fields)}"
        for patch in series.patches
        if patch.missing_fields
    ]


def _export_defects(
    series: Series, stock: dict[str, bytes | None]
) -> tuple[list[str], dict[str, bytes | None] | None]:
    """Defects, and the patched tree unless a patch does not fit."""
    defects: list[str] = []
    tree = dict(stock)
    for patch in series.patches:
        before = {diff.path: tree[diff.path] for diff in patch.diffs}
        try:
            apply_patch(tree, patch)
        except PatchError as error:
            return [*defects, str(error)], None
        diffs = (compare_file(path, data, tree[path]) for path, data in before.items())
        if render(diff for diff in diffs if diff is not None) != patch.body:
            defects.append(f"{patch.name} is not as exported; run: apply_patches.py refresh")
    return defects, tree


def _compile_defects(patched: dict[str, bytes | None]) -> list[str]:
    defects: list[str] = []
    for path, data in patched.items():
        if data is None or not path.endswith(".py"):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(data, path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            defects.append(f"{path} does not compile once patched: {error}")
    return defects


def _round_trip_defects(
    series: Series,
    pin: Pin,
    stock: dict[str, bytes | None],
    patched: dict[str, bytes | None],
    view: StockView,
) -> list[str]:
    """Apply to a copy of the touched files, compare, revert, compare."""
    with tempfile.TemporaryDirectory(prefix="echo-patches-") as scratch:
        copy = Target(root=(Path(scratch) / "sglang").resolve())
        copy.root.mkdir()
        for path, data in stock.items():
            if data is not None:
                copy.file(path).parent.mkdir(parents=True, exist_ok=True)
                copy.file(path).write_bytes(data)
        apply(copy, series, pin)
        defects = [
            f"round trip: {path} differs once applied"
            for path, data in patched.items()
            if copy.read(path) != data
        ]
        if installed_series(copy.root) != series.id:
            defects.append("round trip: the record does not name the series")
        revert(copy)
        defects += [
            f"round trip: {path} differs once reverted"
            for path, data in stock.items()
            if copy.read(path) != data
        ]
        left = sorted(p.relative_to(copy.root).as_posix() for p in copy.root.rglob("*"))
        expected = {path.removeprefix("sglang/") for path, data in stock.items() if data}
        surplus = [p for p in left if p not in expected and (copy.root / p).is_file()]
        return defects + [f"round trip: {p} is left over once reverted" for p in surplus]


def _generated_defects(series: Series, pin: Pin, patched: dict[str, bytes | None]) -> list[str]:
    pin = Pin(version=pin.version, files={path: pin.files[path] for path in series.paths})
    return [
        f"{path} is out of date; run: apply_patches.py refresh"
        for path, content in generated_files(series, pin, patched).items()
        if not path.exists() or path.read_bytes() != content
    ]
