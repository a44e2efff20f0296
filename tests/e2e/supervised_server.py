"""`echo-sglang serve` as a process, with what the tests need to know of its engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from eval.harness.server import die_with_parent
from tests.e2e.live_server import LiveServer

CLI = "echo_sglang.cli"
TIMEOUT_S = 600.0


class SupervisedServer(LiveServer):
    """A LiveServer whose process is the supervisor; healthy once its engine is."""

    def __init__(self, *, model_path: str, log_path: Path, flags: list[str]) -> None:
        super().__init__(model_path=model_path, log_path=log_path, flags=flags)
        self._command = [sys.executable, "-m", CLI, "serve", *self._command[3:]]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def spawn(self) -> None:
        """Start without waiting for an engine."""
        self._log = self.log_path.open("wb")
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def engine_processes(self) -> list[psutil.Process]:
        """Everything alive below the supervisor."""
        return [p for p in psutil.Process(self.pid).children(recursive=True) if alive(p)]

    def is_ready(self) -> bool:
        """True if the supervisor has seen its latest engine ready."""
        text = self.log_path.read_text(errors="replace")
        return text.rfind("the engine is ready") > text.rfind(" started\n")

    def scheduler(self) -> psutil.Process:
        """The scheduler of the engine that runs now."""
        found = [p for p in self.engine_processes() if "sglang::scheduler" in " ".join(p.cmdline())]
        assert len(found) == 1, found
        return found[0]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def exit_code(self) -> int:
        """Wait for the supervisor to end."""
        assert self._process is not None
        return self._process.wait(TIMEOUT_S)

    def until(self, holds: Callable[[], Any], what: str) -> None:
        """Ask until it holds; AssertionError with the log if it never does."""
        give_up_s = time.monotonic() + TIMEOUT_S
        while not holds():
            assert time.monotonic() < give_up_s, f"{what} never came; {self.log_tail()}"
            time.sleep(0.1)


def alive(process: psutil.Process) -> bool:
    """True unless it is gone or only waits to be reaped."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
