"""The two ways to change a target: apply and revert."""

from __future__ import annotations

import stat
import time
from dataclasses import replace

from . import state as st
from .errors import DirtyTargetError
from .exchange import Change, Exchange, Writer
from .inspection import (
    REINSTALL,
    Status,
    StockView,
    check_pin,
    inspect,
    refuse_unless_intact,
    stock_view,
    was_reinstalled,
)
from .series import Pin, Series, sha256
from .state import FileState, State
from .target import Target


def apply(target: Target, series: Series, pin: Pin, *, writer: Writer | None = None) -> str:
    """Bring `target` from whatever intact state to `series`; returns what was done.

    Everything is computed before the first write. Raises WrongVersionError, DirtyTargetError,
    HalfAppliedError, ConflictError, SeriesError, ReadOnlyTargetError, WriteFailedError.
    """
    with target.lock():
        found = inspect(target, series, pin)
        refuse_unless_intact(found, target, pin)
        if found.status is Status.APPLIED:
            return f"already applied: {found.detail}"
        view = stock_view(target)
        stock = {path: view.read(path) for path in series.paths}
        check_pin(target, stock, pin)
        patched = series.apply(stock.__getitem__)
        changes = _changes(target, view, stock, patched)
        new_state = _state(series, [c for c in changes if c.path in patched])
        journal = _state(series, changes)
        Exchange(
            target, changes, journal=journal, new_state=new_state, writer=writer or Writer()
        ).run()
    before = f", in place of {found.state.series_id}" if found.state else ""
    return f"applied series {series.id} to {target.root}: {len(patched)} files{before}"


def _changes(
    target: Target,
    view: StockView,
    stock: dict[str, bytes | None],
    patched: dict[str, bytes | None],
) -> list[Change]:
    """One change per file that is, was or will be patched."""
    known = view.applied or view.replaced
    paths = set(patched) | set(known.files if known else ())
    changes = []
    for path in sorted(paths):
        original = stock[path] if path in stock else view.read(path)
        after = patched.get(path, original)
        entry = view.applied.files.get(path) if view.applied else None
        changes.append(_change(target, path, original=original, after=after, entry=entry))
    return changes


def _change(
    target: Target,
    path: str,
    *,
    original: bytes | None,
    after: bytes | None,
    entry: FileState | None,
) -> Change:
    file = target.file(path)
    before = target.read(path)
    now = file.stat() if before is not None else None
    mode = stat.S_IMODE(now.st_mode) if now else 0o644
    mtime_ns = now.st_mtime_ns if now else time.time_ns()
    if entry is None:
        entry = FileState(
            original=sha256(original), patched=sha256(after), mode=mode, mtime_ns=mtime_ns
        )
    return Change(
        path=path,
        original=original,
        before=before,
        after=after,
        entry=entry,
        before_mtime_ns=mtime_ns,
    )


def _state(series: Series, changes: list[Change]) -> State:
    return State(
        version=series.version,
        series_id=series.id,
        patches={patch.name: patch.id for patch in series.patches},
        files=_file_states(changes),
        previous={change.path: sha256(change.before) for change in changes},
    )


def _file_states(changes: list[Change]) -> dict[str, FileState]:
    return {
        change.path: replace(
            change.entry, original=sha256(change.original), patched=sha256(change.after)
        )
        for change in changes
    }


def revert(target: Target, *, writer: Writer | None = None) -> str:
    """Restore every released byte, also of an interrupted run; returns what was done.

    Needs no patches, only what `apply` left in the target. Raises DirtyTargetError,
    ReadOnlyTargetError, WriteFailedError.
    """
    with target.lock():
        journal = st.load(st.journal_file(target))
        state = st.load(st.state_file(target))
        known = journal or state
        if known is None:
            return f"not applied: {target.root} is as released"
        if was_reinstalled(target, known, interrupted=journal is not None):
            changes = _left_behind(target, known)
        else:
            changes = _restorations(target, known, interrupted=journal is not None)
        undo = replace(
            known,
            files=_file_states(changes),
            previous={change.path: sha256(change.before) for change in changes},
        )
        Exchange(target, changes, journal=undo, new_state=None, writer=writer or Writer()).run()
    return f"reverted {target.root}: {len(changes)} files as released"


def _restorations(target: Target, known: State, *, interrupted: bool) -> list[Change]:
    changes, offending = [], []
    for path, entry in sorted(known.files.items()):
        allowed = {entry.patched}
        if interrupted:
            allowed |= {entry.original, known.previous.get(path)}
        if sha256(target.read(path)) not in allowed:
            offending.append(path)
            continue
        original = st.read_backup(target, path, entry)
        changes.append(_change(target, path, original=original, after=original, entry=entry))
    if offending:
        raise DirtyTargetError(
            f"{', '.join(offending)} in {target.root} was edited since the patches were applied; "
            f"reverting would lose the edit. Save it elsewhere and undo it. "
            f"{REINSTALL}{known.version}"
        )
    return changes


def _left_behind(target: Target, known: State) -> list[Change]:
    """After a reinstallation: only files that our patches had added are still ours."""
    added = (p for p, f in known.files.items() if f.original is None)
    return [
        _change(target, path, original=None, after=None, entry=known.files[path])
        for path in sorted(added)
        if sha256(target.read(path)) in (known.files[path].patched, known.previous.get(path))
    ]
