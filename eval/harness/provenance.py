"""Where a result comes from: machine, versions, commit. Read once when an experiment starts."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from eval.harness.server import OPENMP_SPIN_COUNT, REPOSITORY

_VERSIONS = (
    "import importlib.metadata as m, json\n"
    "names = ('sglang', 'torch', 'transformers', 'numpy')\n"
    "print(json.dumps({n: m.version(n) for n in names}))"
)


def collect_provenance(*, model_path: Path, pythons: dict[str, str]) -> dict[str, Any]:
    """Hardware, versions and commit. pythons: a role, such as "stock", to its interpreter.

    The model is named by its folder's last part (links followed), the same on any machine.
    """
    return {
        "hardware": "CPU",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "omp_num_threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT") or OPENMP_SPIN_COUNT,
        "system": platform.system(),
        "python": platform.python_version(),
        "model": model_path.resolve().name,
        "environments": {role: _versions(python) for role, python in pythons.items()},
        "commit": _git("rev-parse", "HEAD") or "none",
        "dirty": bool(_git("status", "--porcelain")),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _versions(python: str) -> dict[str, str]:
    done = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr else "no answer"}
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
