"""What a run leaves in the target, so that the next one knows what it finds.

    sglang/.echo_patches.json              series applied, digests and times per file
    sglang/.echo_patches/originals/...     the released bytes of every touched file
    sglang/.echo_patches/staged/...        bytes about to be moved into place
    sglang/.echo_patches/journal.json      only while files are being exchanged: same format

A journal that outlives its run means the run was interrupted.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import DirtyTargetError
from .series import sha256
from .target import Target

STATE_NAME = ".echo_patches.json"
FOLDER_NAME = ".echo_patches"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """One touched file: digests as released and patched (None: no such file), mode and mtime."""

    original: str | None
    patched: str | None
    mode: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A series as applied; `previous` holds, in a journal only, the digests it replaces."""

    version: str
    series_id: str
    patches: dict[str, str]
    files: dict[str, FileState]
    previous: dict[str, str | None]

    def dump(self) -> bytes:
        content = {"format": _FORMAT, **asdict(self)}
        return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def state_file(target: Target) -> Path:
    return target.root / STATE_NAME


def folder(target: Target) -> Path:
    return target.root / FOLDER_NAME


def journal_file(target: Target) -> Path:
    return folder(target) / "journal.json"


def backup_file(target: Target, path: str) -> Path:
    return folder(target) / "originals" / path


def load(file: Path) -> State | None:
    """The state in `file`, None when there is none; DirtyTargetError when it is not readable."""
    try:
        content = json.loads(file.read_bytes())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, this tool knows {_FORMAT}")
        return State(
            version=content["version"],
            series_id=content["series_id"],
            patches=content["patches"],
            files={path: FileState(**entry) for path, entry in content["files"].items()},
            previous=content["previous"],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DirtyTargetError(
            f"{file} is damaged ({error}). "
            f"Reinstall SGLang, then delete that file and {FOLDER_NAME}/."
        ) from error


def installed_series(root: Path) -> str | None:
    """Id of the series applied to the package at `root`; None when none, or half of one, is.

    Reads one small file; does not look whether the patched files are still intact.
    """
    target = Target(root=root.resolve())
    if journal_file(target).exists():
        return None
    state = load(state_file(target))
    return state.series_id if state else None


def read_backup(target: Target, path: str, entry: FileState) -> bytes | None:
    """The released bytes kept for `path`; DirtyTargetError when lost or altered."""
    if entry.original is None:
        return None
    file = backup_file(target, path)
    data = file.read_bytes() if file.is_file() else None
    if sha256(data) != entry.original:
        raise DirtyTargetError(
            f"the backup {file} is missing or altered, so {path} cannot be restored. "
            "Reinstall SGLang (pip install --force-reinstall --no-deps sglang==<version>)."
        )
    return data
