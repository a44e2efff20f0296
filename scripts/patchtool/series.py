"""The folder of patches: headers, order, pin and the id of the series.

patches/series       names of the *.patch files, one a line, in order; '#' starts a comment
patches/*.patch      header fields, a blank line or '---', optional text, the diff
patches/pin.json     the SGLang release and the sha256 of every touched file as released
patches/README.md    prose, and a table generated from the headers
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .diff import FileDiff
from .errors import MalformedPatchError, SeriesError
from .parse import parse
from .place import apply_strictly

HEADER_FIELDS = ("Subject", "Why", "Upstream-Status", "Remove-When", "Used-By")
_FIELD = re.compile(r"([A-Z][A-Za-z-]*):[ \t]*(.*)")
_PATCH_NAME = re.compile(r"[0-9]{4}-[a-z0-9][a-z0-9-]*\.patch")


def sha256(data: bytes | None) -> str | None:
    """Hex digest; None stands for "no such file" on both sides."""
    return None if data is None else hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One patch: `header` is kept byte for byte, `diffs` is what it does."""

    name: str
    header: bytes
    fields: dict[str, str]
    diffs: tuple[FileDiff, ...]
    body: bytes

    @property
    def id(self) -> str:
        return hashlib.sha256(self.body).hexdigest()[:12]

    @property
    def missing_fields(self) -> list[str]:
        return [field for field in HEADER_FIELDS if not self.fields.get(field)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """The release the patches are made for; files: path -> sha256, None where none exists."""

    version: str
    files: dict[str, str | None]

    def dump(self) -> bytes:
        content = {"sglang": self.version, "files": dict(sorted(self.files.items()))}
        return (json.dumps(content, indent=2) + "\n").encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The patches in order, for one release."""

    folder: Path
    version: str
    patches: tuple[Patch, ...]

    @property
    def id(self) -> str:
        """Sixteen hex digits over release and diffs; headers and names do not count."""
        text = "".join(f"{hashlib.sha256(patch.body).hexdigest()}\n" for patch in self.patches)
        return hashlib.sha256(f"sglang {self.version}\n{text}".encode()).hexdigest()[:16]

    @property
    def paths(self) -> list[str]:
        return sorted({diff.path for patch in self.patches for diff in patch.diffs})

    def apply(self, read_stock: Callable[[str], bytes | None]) -> dict[str, bytes | None]:
        """Every touched file after the last patch; ConflictError when one does not fit."""
        tree = {path: read_stock(path) for path in self.paths}
        for patch in self.patches:
            apply_patch(tree, patch)
        return tree


def apply_patch(tree: dict[str, bytes | None], patch: Patch) -> None:
    """Apply one patch, strictly, to `tree` in place; `tree` holds all its paths."""
    for diff in patch.diffs:
        tree[diff.path] = apply_strictly(tree[diff.path], diff, patch=patch.name)


def series_names(folder: Path) -> list[str]:
    """The names in patches/series; SeriesError for a bad or repeated name."""
    try:
        text = (folder / "series").read_text(encoding="utf-8")
    except OSError as error:
        raise SeriesError(
            f"cannot read {folder / 'series'}: {error.strerror}. "
            "Give the folder of the patches with --patches."
        ) from error
    names = [line.split("#")[0].strip() for line in text.splitlines()]
    names = [name for name in names if name]
    for name in names:
        if not _PATCH_NAME.fullmatch(name):
            raise SeriesError(
                f"series: {name!r} is no patch name; use NNNN-words-with-dashes.patch."
            )
    if len(set(names)) != len(names):
        raise SeriesError("series: a patch is listed twice.")
    return names


def read_patch(folder: Path, name: str) -> Patch:
    """Read and parse one patch; a body may still be empty (before its first refresh)."""
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise SeriesError(f"series lists {name}, but: {error.strerror}.") from error
    cut = 0 if data.startswith(b"--- ") else data.find(b"\n--- ") + 1
    has_body = cut > 0 or data.startswith(b"--- ")
    header, body = (data[:cut], data[cut:]) if has_body else (data, b"")
    if b"\r\n" in header:
        raise MalformedPatchError(f"{name}: CRLF line ends; patches are kept byte for byte.")
    first_line = header.count(b"\n") + 1
    return Patch(
        name=name,
        header=header,
        fields=_read_fields(header, name),
        diffs=parse(body, name=name, first_line=first_line),
        body=body,
    )


def _read_fields(header: bytes, name: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    current = ""
    for line in header.decode("utf-8", "backslashreplace").split("\n"):
        if not line.strip() or line == "---":
            break
        match = _FIELD.fullmatch(line)
        if match and match[1] in fields:
            raise MalformedPatchError(f"{name}: the header has {match[1]} twice.")
        if match:
            current = match[1]
            fields[current] = match[2].strip()
        elif line[0] in " \t" and current:
            fields[current] = f"{fields[current]} {line.strip()}".strip()
        else:
            raise MalformedPatchError(
                f"{name}: {line!r} is neither 'Field: value' nor an indented continuation."
            )
    return fields


def load_series(folder: Path) -> Series:
    """The whole series with its pin; SeriesError or MalformedPatchError if unusable."""
    pin = load_pin(folder)
    patches = tuple(read_patch(folder, name) for name in series_names(folder))
    for patch in patches:
        if not patch.diffs:
            raise MalformedPatchError(
                f"{patch.name} has no diff. "
                f"Run: apply_patches.py refresh {patch.name} --edited <edited sglang>"
            )
    return Series(folder=folder, version=pin.version, patches=patches)


def load_pin(folder: Path) -> Pin:
    """patches/pin.json; SeriesError when missing or not understood."""
    path = folder / "pin.json"
    try:
        content = json.loads(path.read_bytes())
        return Pin(version=str(content["sglang"]), files=dict(content["files"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SeriesError(f"cannot use {path} ({error}). Run: apply_patches.py refresh") from error
