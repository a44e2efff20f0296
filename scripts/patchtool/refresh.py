"""Re-export patches: after an edited tree, after hand edits, after an earlier patch moved lines."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .diff import FileDiff, compare_file, compare_trees, render
from .errors import ConflictError, DirtyTargetError, UsageError, WrongVersionError
from .generated import generated_files
from .inspection import StockView, stock_view
from .place import place
from .series import Patch, Pin, Series, load_pin, read_patch, series_names, sha256
from .target import Target, check_released, find_target

_IGNORED_SUFFIXES = (".pyc", ".orig", ".rej", "~", ".egg-info")


class StockTree:
    """Released files with the patches so far laid over them."""

    def __init__(self, target: Target) -> None:
        self.view: StockView = stock_view(target)
        self._digests = target.released_sha256()
        self.stock: dict[str, bytes | None] = {}
        self.patched: dict[str, bytes | None] = {}

    def read(self, path: str) -> bytes | None:
        if path not in self.stock:
            self.stock[path] = self.view.read(path)
            check_released(self.view.target, path, self.stock[path], self._digests)
        return self.patched.get(path, self.stock[path])


def refresh(
    folder: Path,
    target: Target,
    *,
    name: str | None = None,
    edited: Path | None = None,
    from_stock: bool = False,
    repin: bool = False,
) -> list[str]:
    """Rewrite patches and generated files; returns a line per file written or notice.

    With `name` and `edited`: the body of that patch becomes what `edited` has beyond the release
    and the earlier patches (`from_stock`: beyond the release alone). Every other patch is placed
    again where its context stands, exactly as it is written, and exported canonically.
    Nothing is written when any patch conflicts.
    """
    if (name is None) != (edited is None):
        raise UsageError("refresh takes a patch name and --edited DIR together, or neither.")
    with _folder_lock(folder):
        names = series_names(folder)
        full_name = _full_name(folder, names, name) if name else None
        if full_name and full_name not in names:
            names.append(full_name)
        version = _version(folder, target, repin)
        tree = StockTree(target)
        notices: list[str] = []
        patches = []
        for patch in (read_patch(folder, name) for name in names):
            if patch.name == full_name and edited is not None:
                diffs = _edited_diffs(tree, find_target(edited), from_stock, patch.name, notices)
            else:
                diffs = _placed_again(tree, patch, notices)
            _lay_over(tree, diffs, patch.name)
            patches.append(replace(patch, diffs=diffs, body=render(diffs)))
        return notices + _write(folder, tree, tuple(patches), version, full_name)


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _full_name(folder: Path, names: list[str], given: str) -> str:
    present = sorted({*names, *(path.name for path in folder.glob("*.patch"))})
    matches = [name for name in present if name == given] or [
        name for name in present if name.startswith(given)
    ]
    if len(matches) != 1:
        raise UsageError(
            f"{given!r} names {len(matches)} patches of {folder}. For a new patch write the file "
            "with its header first (Subject, Why, Upstream-Status, Remove-When, Used-By)."
        )
    return matches[0]


def _version(folder: Path, target: Target, repin: bool) -> str:
    if repin or not (folder / "pin.json").exists():
        if target.version is None:
            raise WrongVersionError(f"{target.root} does not say which release it is.")
        return target.version
    pin = load_pin(folder)
    if target.version not in (None, pin.version):
        raise WrongVersionError(
            f"{target.root} is SGLang {target.version}, the pin is {pin.version}. "
            "To move the patches to this release: refresh --repin"
        )
    return pin.version


def _edited_diffs(
    tree: StockTree, edited: Target, from_stock: bool, name: str, notices: list[str]
) -> tuple[FileDiff, ...]:
    if edited.root == tree.view.target.root:
        raise UsageError(
            f"--edited and --target are both {edited.root}. "
            "Edit a copy, or give a pristine --target."
        )
    base: dict[str, bytes | None] = {}
    wanted: dict[str, bytes | None] = {}
    for path in _candidates(tree, edited):
        now, stock = edited.read(path), tree.view.read(path)
        if now == stock:
            continue
        before = tree.read(path)
        if from_stock:
            diff = compare_file(path, stock, now)
            now = _placed(before, diff, name) if diff else now
        elif _lost_lines(stock, before, now):
            notices.append(
                f"notice: {name} takes back lines of an earlier patch in {path}. If the edited "
                "tree started from the release, add --from-stock."
            )
        base[path], wanted[path] = before, now
    diffs = compare_trees(base, wanted)
    if not diffs:
        raise UsageError(f"{edited.root} has no change beyond the release and earlier patches.")
    return diffs


def _candidates(tree: StockTree, edited: Target) -> list[str]:
    stock_files, edited_files = _listing(tree.view.target.root), _listing(edited.root)
    paths = set(tree.patched)
    for path in set(stock_files) | set(edited_files):
        if stock_files.get(path) != edited_files.get(path) or _differ(tree, edited, path):
            paths.add(path)
    return sorted(paths)


def _listing(root: Path) -> dict[str, int]:
    """Size in bytes by patch path, without caches, editors' leftovers and our own record."""
    sizes: dict[str, int] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f != "__pycache__" and not f.startswith(".")]
        for file in files:
            if not file.startswith(".") and not file.endswith(_IGNORED_SUFFIXES):
                full = Path(folder, file)
                sizes[f"sglang/{full.relative_to(root).as_posix()}"] = full.stat().st_size
    return sizes


def _differ(tree: StockTree, edited: Target, path: str) -> bool:
    return edited.read(path) != tree.view.target.read(path)


def _lost_lines(stock: bytes | None, before: bytes | None, now: bytes | None) -> bool:
    """Does `now` lack a line that earlier patches added to the release?"""
    added = set((before or b"").split(b"\n")) - set((stock or b"").split(b"\n"))
    return bool(added - set((now or b"").split(b"\n")))


def _placed(before: bytes | None, diff: FileDiff, name: str) -> bytes | None:
    placement = place(before, diff)
    if placement.conflicts:
        raise ConflictError(f"{name} does not fit any more: {placement.conflicts[0]}.")
    return placement.result


def _placed_again(tree: StockTree, patch: Patch, notices: list[str]) -> tuple[FileDiff, ...]:
    if not patch.diffs:
        notices.append(f"notice: {patch.name} has no diff yet; apply and check will refuse it")
    base = {diff.path: tree.read(diff.path) for diff in patch.diffs}
    moved = {diff.path: _placed(base[diff.path], diff, patch.name) for diff in patch.diffs}
    diffs = compare_trees(base, moved)
    if render(diffs) != patch.body:
        notices.append(f"notice: {patch.name} was exported anew (moved lines or another form)")
    return diffs


def _lay_over(tree: StockTree, diffs: tuple[FileDiff, ...], name: str) -> None:
    for diff in diffs:
        tree.patched[diff.path] = _placed(tree.read(diff.path), diff, name)


def _write(
    folder: Path, tree: StockTree, patches: tuple[Patch, ...], version: str, name: str | None
) -> list[str]:
    series = Series(folder=folder, version=version, patches=patches)
    stock = {path: tree.view.read(path) for path in series.paths}
    pin = Pin(version=version, files={path: sha256(data) for path, data in stock.items()})
    _compare_with_old_pin(folder, pin)
    files = {folder / patch.name: patch.header + patch.body for patch in patches}
    files |= generated_files(series, pin, {path: tree.patched[path] for path in series.paths})
    if name and name not in series_names(folder):
        text = (folder / "series").read_text(encoding="utf-8")
        files[folder / "series"] = (text.rstrip("\n") + f"\n{name}\n").lstrip("\n").encode()
    written = []
    for path, content in files.items():
        if not path.exists() or path.read_bytes() != content:
            temporary = path.with_name(f".{path.name}.new")
            temporary.write_bytes(content)
            os.replace(temporary, path)
            written.append(f"wrote {path}")
    return written or ["everything is up to date"]


def _compare_with_old_pin(folder: Path, pin: Pin) -> None:
    if not (folder / "pin.json").exists():
        return
    old = load_pin(folder)
    changed = [
        path for path in pin.files if old.files.get(path, pin.files[path]) != pin.files[path]
    ]
    if old.version == pin.version and changed:
        raise DirtyTargetError(
            f"{', '.join(changed)} of the target is not the {pin.version} that is pinned. "
            "Give a pristine --target."
        )
