"""Build what this clone needs: the environment, the patched SGLang beside the stock one, the model.

    python3.11 scripts/setup_env.py             everything; does nothing when nothing changed
    python3.11 scripts/setup_env.py venvs|patched|model     up to and including one step
    python3.11 scripts/setup_env.py path stock-python|model|environment     print a path

Shared by every clone, in ${ECHO_CACHE_DIR:-~/.cache/echo-sglang}:
    env-<hash>            stock SGLang and all tools; hash of requirements/dev.txt and the Python
    smollm2-135m-<hash>   the test model; hash of the converter
Of this clone:
    .venv         sees the shared environment, this project editable, its own patched `sglang`
    .venv-stock   the same without the patched copy, for comparisons side by side

Only the standard library is used. Each step writes its stamp last, so that an interrupted one is
done again, and holds a file lock, so that two runs at once are safe.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
REQUIREMENTS = PROJECT / "requirements" / "dev.txt"
CONVERTER = PROJECT / "scripts" / "convert_model.py"
PATCH_TOOL = PROJECT / "scripts" / "apply_patches.py"
PATCHES = PROJECT / "patches"
PATCHED, STOCK = PROJECT / ".venv", PROJECT / ".venv-stock"
SUPPORTED_PYTHON = (3, 11)
ENVIRONMENT_BYTES = 14 * 1024**3
STAMP = ".complete"
NOISE = ("WARNING: Location ",)
STEPS = ("all", "venvs", "patched", "model")


class SetupError(Exception):
    """A step cannot be done; the message says what to do."""


def digest(parts: Sequence[bytes]) -> str:
    """Return a short hash of `parts`, in order and with their boundaries."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()[:12]


def pins(requirements: str) -> list[str]:
    """Return the requirement lines of a file's text, sorted, without comments and blanks."""
    lines = (line.split("#")[0].strip() for line in requirements.splitlines())
    return sorted(line for line in lines if line)


def cache_root() -> Path:
    """Return the absolute folder shared by all clones."""
    given = os.environ.get("ECHO_CACHE_DIR") or "~/.cache/echo-sglang"
    return Path(given).expanduser().resolve()


def environment_dir() -> Path:
    """Return where the shared environment for these pins and this Python lives."""
    python = [platform.python_version(), platform.system(), platform.machine()]
    wanted = [*pins(REQUIREMENTS.read_text()), *python]
    return cache_root() / f"env-{digest([item.encode() for item in wanted])}"


def model_dir() -> Path:
    """Return where the test model written by the current converter lives."""
    return cache_root() / f"smollm2-135m-{digest([CONVERTER.read_bytes()])}"


def files_hash(files: Iterable[Path]) -> str:
    """Return the hash of `files` by name and content, whatever their order."""
    return digest(
        [part for file in sorted(files) for part in (file.name.encode(), file.read_bytes())]
    )


def series_files(patches: Path) -> list[Path]:
    """Return what decides the patched copy: the pin, the series and every patch."""
    return [patches / "pin.json", patches / "series", *patches.glob("*.patch")]


def site_packages(environment: Path) -> Path:
    """Return the site-packages folder of a virtual environment."""
    major, minor = SUPPORTED_PYTHON
    return environment / "lib" / f"python{major}.{minor}" / "site-packages"


def stamped(folder: Path, content: str) -> bool:
    """Whether `folder` was completed for `content`."""
    stamp = folder / STAMP
    return stamp.is_file() and stamp.read_text() == content


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; says so when another run holds it, and waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another set-up holds {path}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(message: str) -> None:
    print(f"setup: {message}", file=sys.stderr, flush=True)


def run(command: Sequence[str | Path], **variables: str) -> None:
    """Run `command`, showing its output without pip's known noise.

    Raises:
        SetupError: it ended with an error; names the command and its exit code.
    """
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **variables}
    words = [str(word) for word in command]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, cwd=PROJECT, env=environment, **streams) as process:
        for line in process.stdout:
            if not line.startswith(NOISE):
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        raise SetupError(f"exit code {process.returncode} from: {' '.join(words)}")


def ensure_environment() -> Path:
    """Build the shared environment once and return it.

    Raises:
        SetupError: the disk is too full, or pip failed.
    """
    environment = environment_dir()
    wanted = "\n".join(pins(REQUIREMENTS.read_text()))
    python = environment / "bin" / "python"
    with locked(environment.with_suffix(".lock")):
        if stamped(environment, wanted) and python.exists():
            return environment
        free = shutil.disk_usage(environment.parent).free
        if free < ENVIRONMENT_BYTES:
            raise SetupError(
                f"{environment.parent} has {free / 1e9:.0f} GB free, "
                f"{ENVIRONMENT_BYTES / 1e9:.0f} GB are needed; "
                "free some or set ECHO_CACHE_DIR to a larger disk"
            )
        say(f"building {environment} (once; some minutes, about 11 GB)")
        shutil.rmtree(environment, ignore_errors=True)
        venv.create(environment, with_pip=True)
        run([python, "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS])
        (environment / STAMP).write_text(wanted)
    return environment


def ensure_venv(folder: Path, environment: Path) -> None:
    """Make `folder` a light venv over `environment` with this project installed editable.

    It has no pip of its own: `bin/python -m pip` is the environment's and installs into `folder`.
    """
    wanted = digest([str(environment).encode(), (PROJECT / "setup.py").read_bytes()])
    if stamped(folder, wanted) and (folder / "bin" / "python").exists():
        return
    say(f"making {folder.name}")
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=False, symlinks=True)
    below = str(site_packages(environment))
    link = site_packages(folder) / "environment.pth"
    link.write_text(f"import site; site.addsitedir({below!r})\n")
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", PROJECT]
    run([python, "-m", "pip", *install])
    (folder / STAMP).write_text(wanted)


def ensure_patched(environment: Path) -> None:
    """Give `.venv` its own copy of `sglang` with the current patch series applied.

    The new copy replaces the old one only when every patch went in. It is a true copy: hard links
    would write through to the shared environment.
    """
    target = site_packages(PATCHED) / "sglang"
    decisive = [*series_files(PATCHES), *PATCH_TOOL.parent.glob("patchtool/*.py")]
    wanted = digest([str(environment).encode(), files_hash(decisive).encode()])
    if stamped(target, wanted):
        return
    say("patching this clone's copy of sglang")
    staging = PATCHED / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(site_packages(environment) / "sglang", staging / "sglang", symlinks=True)
    run([PATCHED / "bin" / "python", PATCH_TOOL, "apply", "--target", staging / "sglang"])
    (staging / "sglang" / STAMP).write_text(wanted)
    shutil.rmtree(target, ignore_errors=True)
    (staging / "sglang").rename(target)
    shutil.rmtree(staging)


def ensure_model(environment: Path) -> None:
    """Convert the test model once and link it as `.venv/model`."""
    model = model_dir()
    with locked(model.with_suffix(".lock")):
        if not (model / STAMP).is_file():
            say(f"converting the test model to {model} (once; half a minute)")
            run(
                [environment / "bin" / "python", CONVERTER, "--output", model],
                HF_HUB_OFFLINE="1",
                TRANSFORMERS_OFFLINE="1",
                TQDM_DISABLE="1",
            )
            (model / STAMP).write_text("")
    link = PATCHED / "model"
    if not link.is_symlink() or link.readlink() != model:
        link.unlink(missing_ok=True)
        link.symlink_to(model)


def set_up(step: str) -> None:
    """Do the steps up to `step` in order; each is skipped when it is done already."""
    environment = ensure_environment()
    with locked(PROJECT / ".setup.lock"):
        ensure_venv(PATCHED, environment)
        ensure_venv(STOCK, environment)
        if step in ("patched", "all"):
            ensure_patched(environment)
        if step in ("model", "all"):
            ensure_model(environment)


def main(argv: list[str] | None = None) -> int:
    """Command line entry; returns 1 with a message when a step cannot be done."""
    paths = {
        "stock-python": STOCK / "bin" / "python",
        "model": model_dir(),
        "environment": environment_dir(),
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", nargs="?", default="all", choices=[*STEPS, "path"])
    parser.add_argument("name", nargs="?", choices=list(paths), help="which path to print")
    args = parser.parse_args(argv)
    if (args.step == "path") != (args.name is not None):
        parser.error(f"`path` takes one of {', '.join(paths)}; a step takes nothing")
    if args.name:
        print(paths[args.name])
        return 0
    try:
        if sys.version_info[:2] != SUPPORTED_PYTHON:
            wanted = ".".join(map(str, SUPPORTED_PYTHON))
            raise SetupError(
                f"this is Python {platform.python_version()}, {wanted} is needed; "
                f"run `make PYTHON=/path/to/python{wanted} setup`"
            )
        set_up(args.step)
    except (SetupError, OSError, subprocess.CalledProcessError) as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
