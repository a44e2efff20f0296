"""Environments of the clients, one each, cached beside the project's own by their pins."""

from __future__ import annotations

import platform
import shutil
import sys
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from setup_env import PROJECT, STAMP, cache_root, digest, locked, pins, run, say, stamped

PINS = PROJECT / "requirements" / "clients"
CLIENTS = tuple(sorted(path.stem for path in PINS.glob("*.txt")))


def ensure_client(name: str) -> Path:
    """The Python of an environment with this client, built on the first call.

    Raises SetupError if pip failed.
    """
    requirements = PINS / f"{name}.txt"
    wanted = "\n".join([*pins(requirements.read_text()), platform.python_version()])
    folder = cache_root() / f"client-{name}-{digest([wanted.encode()])}"
    python = folder / "bin" / "python"
    with locked(folder.with_suffix(".lock")):
        if not (stamped(folder, wanted) and python.exists()):
            say(f"building {folder} (once)")
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            run([python, "-m", "pip", "install", "--quiet", "--requirement", requirements])
            (folder / STAMP).write_text(wanted)
    return python


if __name__ == "__main__":
    for client in sys.argv[1:] or CLIENTS:
        print(ensure_client(client))
