"""Exchange a set of files: all or nothing, and a crash in between can be undone.

    1 back up    released bytes to originals/, new bytes to staged/      target untouched
    2 journal    journal.json appears (atomic)                           half-applied from here
    3 exchange   staged files renamed into place, one by one
    4 state      .echo_patches.json written or removed (atomic)
    5 finish     journal.json removed                                    done
    6 tidy       staged/ and unused originals removed

An error in 1 leaves the target as it was. An error in 2 to 5 is rolled back; a crash leaves the
journal, whose `original` digests and originals/ are all that `revert` needs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from . import state as st
from .errors import HalfAppliedError, ReadOnlyTargetError, WriteFailedError
from .state import FileState, State
from .target import Target


class Writer:
    """The four things done to a disk; tests pass one that fails or stops on purpose."""

    def write(self, file: Path, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file in our own folder, durable before it returns."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())

    def set_mtime(self, file: Path, mtime_ns: int) -> None:
        os.utime(file, ns=(mtime_ns, mtime_ns))

    def replace(self, source: Path, destination: Path) -> None:
        """Atomic; a link at `destination` is replaced, not written through."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, destination)
        self._sync_folder(destination.parent)

    def remove(self, file: Path) -> None:
        file.unlink()
        self._sync_folder(file.parent)

    def _sync_folder(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One file: its bytes as released, now and wanted (None: no such file)."""

    path: str
    original: bytes | None
    before: bytes | None
    after: bytes | None
    entry: FileState
    before_mtime_ns: int


class Exchange:
    """One run over one target; `new_state` None means back to the release."""

    def __init__(
        self,
        target: Target,
        changes: list[Change],
        *,
        journal: State,
        new_state: State | None,
        writer: Writer,
    ) -> None:
        self._target = target
        self._changes = changes
        self._journal = journal
        self._new_state = new_state
        self._writer = writer
        self._old_state = self._read(st.state_file(target))
        self._old_journal = self._read(st.journal_file(target))

    def run(self) -> None:
        """Do all six steps; raises ReadOnlyTargetError, WriteFailedError or HalfAppliedError."""
        self._require_writable()
        try:
            self._back_up()
        except OSError as error:
            self._tidy(self._old_state is not None or self._old_journal is not None)
            raise ReadOnlyTargetError(
                f"cannot write below {self._target.root}: {error}. Nothing was changed."
            ) from error
        moved: list[Change] = []
        try:
            self._put(st.journal_file(self._target), self._journal.dump())
            for change in self._changes:
                moved.append(change)
                self._move(change)
            self._set_state(self._new_state.dump() if self._new_state else None)
            self._writer.remove(st.journal_file(self._target))
        except BaseException as error:
            self._roll_back(moved, error)
            if isinstance(error, OSError):
                raise WriteFailedError(
                    f"writing failed: {error}. Everything was put back as it was."
                ) from error
            raise
        self._tidy(self._new_state is not None)

    def _require_writable(self) -> None:
        folders = {self._target.root}
        for change in self._changes:
            parent = self._target.file(change.path).parent
            while not parent.exists():
                parent = parent.parent
            folders.add(parent)
        for path in sorted(folders):
            if not os.access(path, os.W_OK | os.X_OK):
                raise ReadOnlyTargetError(
                    f"{path} is read-only for this user. Nothing was changed. Run as the owner of "
                    "the installation, or install SGLang in a virtual environment of your own."
                )

    def _back_up(self) -> None:
        for change in self._changes:
            if change.original is not None:
                self._put(st.backup_file(self._target, change.path), change.original)
            self._stage("after", change, change.after)
            self._stage("before", change, change.before)

    def _stage(self, side: str, change: Change, data: bytes | None) -> None:
        if data is not None:
            self._writer.write(self._staged(side, change.path), data, mode=change.entry.mode)

    def _staged(self, side: str, path: str) -> Path:
        return st.folder(self._target) / "staged" / side / path

    def _move(self, change: Change) -> None:
        if change.before == change.after:
            return
        if change.after == change.original:
            mtime_ns = change.entry.mtime_ns
        else:
            # Compiled files are matched by whole seconds: never reuse the second of older bytes.
            mtime_ns = max(time.time_ns(), change.before_mtime_ns + 1_000_000_000)
        self._place("after", change.path, change.after, mtime_ns)

    def _place(self, side: str, path: str, data: bytes | None, mtime_ns: int) -> None:
        file = self._target.file(path)
        if data is not None:
            staged = self._staged(side, path)
            self._writer.set_mtime(staged, mtime_ns)
            self._writer.replace(staged, file)
        elif file.exists():
            self._writer.remove(file)

    def _roll_back(self, moved: list[Change], cause: BaseException) -> None:
        try:
            for change in reversed(moved):
                if self._target.read(change.path) != change.before:
                    self._place("before", change.path, change.before, change.before_mtime_ns)
                if change.before is None:
                    remove_empty_folders(self._target, change.path)
            self._set_state(self._old_state)
            if self._old_journal is not None:
                self._put(st.journal_file(self._target), self._old_journal)
            elif st.journal_file(self._target).exists():
                self._writer.remove(st.journal_file(self._target))
        except Exception as error:
            raise HalfAppliedError(
                f"writing failed ({cause}) and so did undoing it ({error}). "
                "Free or repair the disk, then run: apply_patches.py revert"
            ) from cause
        self._tidy(self._old_state is not None or self._old_journal is not None)

    def _set_state(self, data: bytes | None) -> None:
        file = st.state_file(self._target)
        if data is not None:
            self._put(file, data)
        elif file.exists():
            self._writer.remove(file)

    def _put(self, file: Path, data: bytes) -> None:
        temporary = st.folder(self._target) / "staged" / "new"
        self._writer.write(temporary, data)
        self._writer.replace(temporary, file)

    def _tidy(self, keep_backups: bool) -> None:
        """Leftovers are harmless, so an error here is not one of the run."""
        for change in self._changes:
            if change.after is None and change.original is None:
                remove_empty_folders(self._target, change.path)
            if keep_backups and self._new_state and change.path not in self._new_state.files:
                st.backup_file(self._target, change.path).unlink(missing_ok=True)
        unwanted = st.folder(self._target) / ("staged" if keep_backups else "")
        shutil.rmtree(unwanted, ignore_errors=True)

    @staticmethod
    def _read(file: Path) -> bytes | None:
        return file.read_bytes() if file.exists() else None


def remove_empty_folders(target: Target, path: str) -> None:
    """After removing an added file: its compiled copies, then the folders it alone was in."""
    file = target.file(path)
    cache = file.parent / "__pycache__"
    with contextlib.suppress(OSError):
        for compiled in cache.glob(f"{file.stem}.*.pyc"):
            compiled.unlink()
        if cache.exists() and not any(cache.iterdir()):
            cache.rmdir()
        folder = file.parent
        while folder != target.root and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent
