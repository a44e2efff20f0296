"""The environment variables that SGLang must see before it is imported for an emulated run."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
from pathlib import Path

EMULATE_ENV = "ECHO_SGLANG_EMULATE"
"""Names the device that a live server emulates; absent: it computes."""

ENVIRONMENT = {
    # echo_sglang.platform.cpu.PLATFORM_NAME; importing it would import SGLang too early.
    "SGLANG_PLATFORM": "echo_cpu",
    "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
    "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
    "SGLANG_SET_CPU_AFFINITY": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}


def prepare_environment() -> None:
    """Set what is not set. Harmless after the first time."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("SGLANG_DISABLED_MODEL_ARCHS", ",".join(models_but("llama")))


def models_but(name: str) -> list[str]:
    """SGLang's model modules but one, for SGLANG_DISABLED_MODEL_ARCHS: importing them all takes
    ten seconds. Imports nothing of SGLang."""
    package = importlib.util.find_spec("sglang")
    assert package is not None and package.submodule_search_locations is not None
    folders = [str(Path(place) / "srt" / "models") for place in package.submodule_search_locations]
    return [module for _, module, _ in pkgutil.iter_modules(folders) if module != name]
