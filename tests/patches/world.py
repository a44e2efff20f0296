"""A small sglang package, a small patch set for it, and disks that fail on purpose."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from patchtool.exchange import Writer
from patchtool.inspection import Inspection, inspect
from patchtool.operations import apply
from patchtool.refresh import refresh
from patchtool.series import load_pin, load_series
from patchtool.target import Target, find_target

VERSION = "1.2.3"
STOCK = {
    "sglang/srt/scheduler.py": b"".join(b"line_%d = %d\n" % (i, i) for i in range(1, 41)),
    "sglang/srt/windows.py": b"a = 1\r\nb = 2\r\nc = 3\r\n",
    "sglang/srt/no_newline.txt": b"one\ntwo",
    "sglang/srt/unused.py": b"unused = True\n",
    "sglang/__init__.py": b"",
}
SCHEDULER = "sglang/srt/scheduler.py"
FIRST_EDIT = {
    SCHEDULER: STOCK[SCHEDULER].replace(b"line_5 = 5\n", b"line_5 = 50\nadded = 1\n"),
    "sglang/srt/windows.py": b"a = 1\r\nb = 20\r\nc = 3\r\n",
}
SECOND_EDIT = {
    SCHEDULER: FIRST_EDIT[SCHEDULER].replace(b"line_30 = 30\n", b""),
    "sglang/srt/no_newline.txt": b"one\ntwo\nthree",
    "sglang/srt/unused.py": None,
    "sglang/echo/seam.py": b"seam = None\n",
}
HEADER = (
    b"Subject: %s\nWhy: a test needs it\n and says so at length\nUpstream-Status: not offered\n"
    b"Remove-When: the test goes\nUsed-By: tests\n\n"
)


def write_package(root: Path, files: Mapping[str, bytes | None], version: str = VERSION) -> Target:
    """A package of `files` below `root` (None: absent), with a version file like upstream's."""
    for path, data in files.items():
        if data is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data)
    version_text = f"__version__ = version = {version!r}\n"
    (root / "sglang" / "_version.py").write_text(version_text)
    return find_target(root)


def snapshot(target: Target) -> dict[str, bytes]:
    """Every file below the package, our own record included."""
    files = (path for path in sorted(target.root.rglob("*")) if path.is_file())
    return {path.relative_to(target.root).as_posix(): path.read_bytes() for path in files}


def add_patch(folder: Path, stock: Target, name: str, edited: Path) -> None:
    """Write a header and take the body from the tree at `edited`."""
    (folder / name).write_bytes(HEADER % name.encode())
    refresh(folder, stock, name=name, edited=edited)


@dataclass
class World:
    """A project with two patches (`patches`), and a stock package to try them on (`target`)."""

    base: Path
    patches: Path = field(init=False)
    stock: Target = field(init=False)
    target: Target = field(init=False)

    def __post_init__(self) -> None:
        self.patches = self.base / "project" / "patches"
        self.patches.mkdir(parents=True)
        (self.patches / "series").write_text("# order\n")
        (self.base / "project" / "echo_sglang" / "adapter").mkdir(parents=True)
        self.stock = write_package(self.base / "stock", STOCK)
        self.target = write_package(self.base / "target", STOCK)
        self.add("0001-first.patch", FIRST_EDIT)

    def add(self, name: str, edit: Mapping[str, bytes | None]) -> None:
        """Append a patch; `edit` is what the edited tree holds beyond the earlier patches."""
        edited = self.base / f"edited-{name}"
        done = load_series(self.patches).apply(self.stock.read) if name[:4] != "0001" else {}
        write_package(edited, {**STOCK, **done, **edit})
        add_patch(self.patches, self.stock, name, edited)

    def add_second(self) -> None:
        self.add("0002-second.patch", SECOND_EDIT)

    def apply(self, writer: Writer | None = None) -> str:
        return apply(self.target, load_series(self.patches), load_pin(self.patches), writer=writer)

    def inspect(self) -> Inspection:
        return inspect(self.target, load_series(self.patches), load_pin(self.patches))


class PowerCut(BaseException):
    """Nothing after it is executed, neither by the run nor by its clean-up."""


class DyingWriter(Writer):
    """Does `steps` renames and removals, then is dead for good."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def _step(self) -> None:
        if self.steps == 0:
            raise PowerCut
        self.steps -= 1

    def write(self, file: Path, data: bytes, *, mode: int = 0o644) -> None:
        if self.steps == 0:
            raise PowerCut
        super().write(file, data, mode=mode)

    def replace(self, source: Path, destination: Path) -> None:
        self._step()
        super().replace(source, destination)

    def remove(self, file: Path) -> None:
        self._step()
        super().remove(file)


class FailingWriter(Writer):
    """The `failing`-th rename or removal raises `error` once; the disk then works again."""

    def __init__(self, failing: int, error: OSError) -> None:
        self.left = failing
        self.error = error

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error

    def replace(self, source: Path, destination: Path) -> None:
        self._step()
        super().replace(source, destination)

    def remove(self, file: Path) -> None:
        self._step()
        super().remove(file)


class CountingWriter(Writer):
    """Counts renames and removals."""

    def __init__(self) -> None:
        self.steps = 0

    def replace(self, source: Path, destination: Path) -> None:
        self.steps += 1
        super().replace(source, destination)

    def remove(self, file: Path) -> None:
        self.steps += 1
        super().remove(file)


def run_unprivileged(function: Callable[[], bytes]) -> bytes:
    """Run `function` in a child without root's right to write anywhere; its printed bytes."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            os.write(writer, function())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as output:
        text = output.read()
    os.waitpid(child, 0)
    return text
