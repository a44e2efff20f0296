"""What stands in a target, and the released bytes behind it; reads only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from . import state as st
from .errors import (
    DirtyTargetError,
    HalfAppliedError,
    SeriesError,
    WrongVersionError,
)
from .series import Pin, Series, sha256
from .state import State
from .target import Target

REINSTALL = "Reinstall it: pip install --force-reinstall --no-deps sglang=="


class Status(Enum):
    """What a target can be; the value is what `status` prints."""

    APPLIED = "applied"
    NOT_APPLIED = "not applied"
    OLDER_SERIES = "older series"
    DIRTY = "dirty"
    HALF_APPLIED = "half-applied"
    WRONG_VERSION = "wrong version"

    @property
    def exit_code(self) -> int:
        return _STATUS_EXIT_CODES[self]


_STATUS_EXIT_CODES = {
    Status.APPLIED: 0,
    Status.NOT_APPLIED: 3,
    Status.OLDER_SERIES: 4,
    Status.DIRTY: DirtyTargetError.exit_code,
    Status.HALF_APPLIED: HalfAppliedError.exit_code,
    Status.WRONG_VERSION: WrongVersionError.exit_code,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """`state` is what is applied now (None: nothing); `offending` names the files of DIRTY."""

    status: Status
    version: str | None
    state: State | None
    offending: tuple[str, ...]
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StockView:
    """The released bytes of a target, patched or not."""

    target: Target
    applied: State | None
    replaced: State | None

    def read(self, path: str) -> bytes | None:
        """Bytes of `path` as released, from the backup if it is patched now."""
        if self.applied and path in self.applied.files:
            return st.read_backup(self.target, path, self.applied.files[path])
        now = self.target.read(path)
        left_behind = self.replaced.files.get(path) if self.replaced else None
        if left_behind and left_behind.original is None and sha256(now) == left_behind.patched:
            return None
        return now


def stock_view(target: Target) -> StockView:
    """How to read the release; HalfAppliedError or DirtyTargetError if no longer possible."""
    if st.journal_file(target).exists():
        raise HalfAppliedError(_half_applied_message(target))
    state = st.load(st.state_file(target))
    if state is not None and was_reinstalled(target, state):
        return StockView(target=target, applied=None, replaced=state)
    return StockView(target=target, applied=state, replaced=None)


def was_reinstalled(target: Target, state: State, *, interrupted: bool = False) -> bool:
    """pip replaced the files it knows and left our record behind."""
    if target.version is not None and target.version != state.version:
        return True
    if interrupted:
        return False
    known = {p: f for p, f in state.files.items() if f.original and f.original != f.patched}
    return bool(known) and all(sha256(target.read(p)) == f.original for p, f in known.items())


def inspect(target: Target, series: Series, pin: Pin) -> Inspection:
    """What stands in `target`, compared with `series`; reads only."""
    version = target.version
    if st.journal_file(target).exists():
        return _inspection(Status.HALF_APPLIED, target, detail=_half_applied_message(target))
    view = stock_view(target)
    state = view.applied
    if state is None and version is not None and version != pin.version:
        return _inspection(Status.WRONG_VERSION, target, detail=_wrong_version(target, pin))
    if state is None:
        wanted = {path: pin.files.get(path) for path in series.paths if path in pin.files}
        found = {path: sha256(view.read(path)) for path in wanted}
    else:
        wanted = {path: entry.patched for path, entry in state.files.items()}
        found = {path: sha256(target.read(path)) for path in wanted}
    offending = tuple(path for path in sorted(wanted) if wanted[path] != found[path])
    if offending:
        detail = _dirty_message(target, offending, pin)
        return _inspection(Status.DIRTY, target, state=state, offending=offending, detail=detail)
    if state is None:
        return _inspection(Status.NOT_APPLIED, target, detail=f"{target.root} is stock")
    if state.series_id == series.id:
        detail = f"series {series.id}, {len(state.files)} files intact"
        return _inspection(Status.APPLIED, target, state=state, detail=detail)
    detail = f"series {state.series_id} is applied, series {series.id} is here; run: apply"
    return _inspection(Status.OLDER_SERIES, target, state=state, detail=detail)


def _inspection(
    status: Status,
    target: Target,
    *,
    detail: str,
    state: State | None = None,
    offending: tuple[str, ...] = (),
) -> Inspection:
    return Inspection(
        status=status, version=target.version, state=state, offending=offending, detail=detail
    )


def _half_applied_message(target: Target) -> str:
    return (
        f"an earlier run on {target.root} was interrupted: some files are patched, some are not. "
        "Run: apply_patches.py revert, then apply"
    )


def _wrong_version(target: Target, pin: Pin) -> str:
    return (
        f"{target.root} is SGLang {target.version}; the patches are made for {pin.version}. "
        f"Install that: pip install sglang=={pin.version}"
    )


def _dirty_message(target: Target, offending: tuple[str, ...], pin: Pin) -> str:
    files = ", ".join(offending)
    return (
        f"{files} in {target.root}: neither as released in {pin.version} nor as patched. "
        f"Undo the local edits. {REINSTALL}{pin.version}"
    )


def refuse_unless_intact(found: Inspection, target: Target, pin: Pin) -> None:
    """Raise what `apply` may not work on."""
    if found.status is Status.HALF_APPLIED:
        raise HalfAppliedError(found.detail)
    if found.version is not None and found.version != pin.version:
        raise WrongVersionError(_wrong_version(target, pin))
    if found.status is Status.DIRTY:
        raise DirtyTargetError(found.detail)


def check_pin(target: Target, stock: dict[str, bytes | None], pin: Pin) -> None:
    """DirtyTargetError unless every file is the pinned release's; SeriesError if not pinned."""
    for path in stock:
        if path not in pin.files:
            raise SeriesError(f"pin.json does not list {path}. Run: apply_patches.py refresh")
    offending = tuple(path for path, data in stock.items() if sha256(data) != pin.files[path])
    if offending:
        raise DirtyTargetError(_dirty_message(target, offending, pin))
