"""Rehearse the series on another release: what would fit, and the first thing that would not."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .errors import MissingTargetError, TargetError
from .inspection import stock_view
from .place import Conflict, place
from .series import Patch, Series
from .target import find_target

Reader = Callable[[str], bytes | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """How one patch fares; `offsets` are (file, lines moved) of hunks found elsewhere."""

    patch: str
    offsets: tuple[tuple[str, int], ...]
    conflict: Conflict | None

    def __str__(self) -> str:
        if self.conflict is not None:
            return f"{self.patch}: CONFLICT in {self.conflict}"
        if self.offsets:
            moved = ", ".join(f"{path} {lines:+d}" for path, lines in self.offsets)
            return f"{self.patch}: applies with offset ({moved})"
        return f"{self.patch}: applies"


def rehearse(series: Series, read: Reader) -> list[Rehearsal]:
    """Lay the series over another release, hunks that do not fit left out. Writes nothing."""
    tree: dict[str, bytes | None] = {}
    return [_rehearse_patch(patch, tree, read) for patch in series.patches]


def _rehearse_patch(patch: Patch, tree: dict[str, bytes | None], read: Reader) -> Rehearsal:
    offsets: list[tuple[str, int]] = []
    conflicts: list[Conflict] = []
    for diff in patch.diffs:
        before = tree[diff.path] if diff.path in tree else read(diff.path)
        placement = place(before, diff)
        tree[diff.path] = placement.result
        conflicts += placement.conflicts
        offsets += [(diff.path, lines) for lines in placement.offsets if lines]
    return Rehearsal(
        patch=patch.name,
        offsets=tuple(offsets),
        conflict=conflicts[0] if conflicts else None,
    )


def open_release(given: str) -> Reader:
    """A reader of released files: `given` is a folder, a wheel, or a version to download."""
    path = Path(given)
    if path.is_dir():
        return stock_view(find_target(path)).read
    if path.suffix == ".whl" and path.is_file():
        return _wheel_reader(path)
    if path.suffix == ".whl" or os.sep in given:
        raise MissingTargetError(f"no wheel or folder at {given}.")
    return _wheel_reader(_download(given))


def _wheel_reader(path: Path) -> Reader:
    try:
        wheel = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise TargetError(f"{path} is not a wheel: {error}.") from error
    names = set(wheel.namelist())
    return lambda name: wheel.read(name) if name in names else None


def _download(version: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "echo-sglang" / "wheels" / version
    wheels = sorted(folder.glob("sglang-*.whl"))
    if wheels:
        return wheels[0]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"sglang=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("sglang-*.whl"))
    if done.returncode or not wheels:
        raise MissingTargetError(
            f"pip could not download sglang=={version}: {done.stderr.strip()} "
            "Give a wheel or a folder instead: --against PATH"
        )
    return wheels[0]
