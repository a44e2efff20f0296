"""Where the SGLang package is, which release it is, and its bytes as released."""

from __future__ import annotations

import base64
import csv
import fcntl
import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import BusyTargetError, DirtyTargetError, MissingTargetError, TargetError

_VERSION = re.compile(r"^__version__ = (?:version = )?['\"]([^'\"]+)['\"]", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One SGLang package: `root` is the folder that holds sglang's __init__.py."""

    root: Path

    def file(self, path: str) -> Path:
        """The file of a patch path such as "sglang/srt/x.py"; never outside of `root`."""
        file = self.root / path.removeprefix("sglang/")
        if not file.parent.resolve().is_relative_to(self.root):
            raise TargetError(f"{file.parent} leads out of {self.root} through a symbolic link.")
        return file

    def read(self, path: str) -> bytes | None:
        """Bytes now, None when there is no such file."""
        try:
            return self.file(path).read_bytes()
        except FileNotFoundError:
            return None
        except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
            raise TargetError(f"cannot read {self.file(path)}: {error.strerror}.") from error

    @property
    def version(self) -> str | None:
        """The release, from _version.py or the metadata beside it; None in a bare checkout."""
        try:
            found = _VERSION.search((self.root / "_version.py").read_text(encoding="utf-8"))
        except OSError:
            found = None
        if found:
            return found[1]
        metadata = self._metadata_folder()
        return metadata.name.split("-")[1].removesuffix(".dist-info") if metadata else None

    def released_sha256(self) -> dict[str, str]:
        """Digests that pip recorded at installation, by patch path; {} in a checkout."""
        metadata = self._metadata_folder()
        record = metadata / "RECORD" if metadata else None
        if record is None or not record.is_file():
            return {}
        digests: dict[str, str] = {}
        with record.open(newline="", encoding="utf-8") as lines:
            for path, digest, *_ in csv.reader(lines):
                if path.startswith("sglang/") and digest.startswith("sha256="):
                    padded = digest.removeprefix("sha256=") + "=="
                    digests[path] = base64.urlsafe_b64decode(padded).hex()
        return digests

    def _metadata_folder(self) -> Path | None:
        return next(iter(sorted(self.root.parent.glob("sglang-*.dist-info"))), None)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held by one run at a time; BusyTargetError at once when another holds it."""
        handle = os.open(self.root, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyTargetError(
                    f"another run of apply_patches.py works on {self.root}; try again later."
                ) from error
            yield
        finally:
            os.close(handle)


def find_target(given: Path | None) -> Target:
    """The package to patch: `given`, or the one this Python would import (without importing it).

    `given` may be the package itself, a folder with `sglang/`, or a checkout with `python/sglang`.
    """
    if given is None:
        return _installed()
    for root in (given / "python" / "sglang", given / "sglang", given):
        if (root / "__init__.py").is_file():
            return Target(root=root.resolve())
    raise MissingTargetError(
        f"no SGLang package at {given}. Give site-packages/sglang, a folder that contains "
        "sglang/, or a checkout that contains python/sglang."
    )


def _installed() -> Target:
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        raise MissingTargetError(
            "this Python has no sglang package. Install it (pip install sglang==<pinned version>), "
            "run with the Python that has it, or give --target."
        )
    return Target(root=Path(spec.origin).parent.resolve())


def check_released(target: Target, path: str, data: bytes | None, digests: dict[str, str]) -> None:
    """DirtyTargetError when `data` is not what pip installed (no check without a record)."""
    recorded = digests.get(path)
    actual = None if data is None else hashlib.sha256(data).hexdigest()
    if digests and recorded != actual:
        raise DirtyTargetError(
            f"{target.file(path)} is not the file that was installed. "
            "Reinstall SGLang before making patches against it."
        )
