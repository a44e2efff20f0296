"""Keeps the results of emulated runs on disk, so that what was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from echo_sglang.sim.catalog import profile_path
from echo_sglang.sim.spec import RunSpec

Execute = Callable[[Sequence[RunSpec]], Iterable[dict[str, Any]]]
"""Runs specs and gives their results in order, each as soon as it is there."""


def keeping(folder: Path, execute: Execute, *, version: str) -> Execute:
    """`execute` that keeps each result in `folder` and runs only what is not there.

    version: of the code that runs; results of another one are not used. A run is known by
    its spec and by the contents of the files that it reads.
    """

    def run(specs: Sequence[RunSpec]) -> Iterator[dict[str, Any]]:
        keys = [run_key(spec, version) for spec in specs]
        missing = {
            key: spec
            for key, spec in zip(keys, specs, strict=True)
            if _load(folder / f"{key}.json") is None
        }
        running = zip(missing, execute(list(missing.values())), strict=True)
        for key in keys:
            path = folder / f"{key}.json"
            while (found := _load(path)) is None:
                done, result = next(running)
                _keep(folder / f"{done}.json", result)
            yield found

    return run


def run_key(spec: RunSpec, version: str) -> str:
    """Short name, equal only for runs that must give the same result."""
    digest = hashlib.sha256(f"{version} {spec.digest}".encode())
    paths = [getattr(recipe, "path", None) for recipe in spec.recipes]
    for path in [*paths, profile_path(spec.device)]:
        if path is not None:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _load(path: Path) -> dict[str, Any] | None:
    """A kept result; None if there is none that can be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _keep(path: Path, result: dict[str, Any]) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.replace(path)
