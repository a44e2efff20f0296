"""Files that the command line names, looked at before a model is loaded."""

from __future__ import annotations

import os
from pathlib import Path

from echo_sglang.adapter.profiles import load_profile
from echo_sglang.config import EchoConfig
from echo_sglang.errors import ConfigError


def check_files(config: EchoConfig) -> None:
    """Raise ProfileError or ConfigError if one of them cannot be used."""
    if config.profile:
        load_profile(Path(config.profile))
    trace = Path(config.trace).absolute()
    if config.trace and (trace.is_dir() or not os.access(trace.parent, os.W_OK)):
        raise ConfigError(
            f"--echo-trace {config.trace}: allowed is a file in a folder that exists and can be "
            "written to"
        )
