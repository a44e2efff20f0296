"""A real server process for end-to-end tests, and a small HTTP client for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from eval.harness.server import die_with_parent, quick_start

START_TIMEOUT_S = 600.0
"""Most of a start is imports, in three processes; slow machines take minutes for two servers."""

STOP_TIMEOUT_S = 20.0
REQUEST_TIMEOUT_S = 300.0
LOG_TAIL_LINES = 60
LOG_LINE_CHARACTERS = 400

ECHO_MODULE = "echo_sglang.launch_server"
STOCK_MODULE = "sglang.launch_server"

SERVER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    # A dying server otherwise waits a minute for dumps that a CPU cannot give.
    "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
    "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
    # With a second worker of pytest-xdist there is a second server.
    "OMP_NUM_THREADS": "1" if "PYTEST_XDIST_WORKER" in os.environ else "2",
    "SGLANG_PLATFORM": "echo_cpu",
    # Clients keep connections; one that is closed in the moment it is used again loses a request.
    "SGLANG_TIMEOUT_KEEP_ALIVE": "3600",
}


class LiveServer:
    """One server in its own process group, on a free loopback port.

    module: what `python -m` starts. flags: its command line after model, host and port.
    environment: variables on top of this process's and SERVER_ENVIRONMENT.
    The log goes to `log_path`; `log_tail()` reads its last lines.
    """

    def __init__(
        self,
        *,
        model_path: str,
        log_path: Path,
        module: str = ECHO_MODULE,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.log_path = log_path
        self._command = [
            *(sys.executable, "-m", module, "--model-path", model_path),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *flags,
        ]
        quick = quick_start(Path(model_path))
        self._environment = {**os.environ, **quick, **SERVER_ENVIRONMENT, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._log: BinaryIO | None = None
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=REQUEST_TIMEOUT_S, trust_env=False
        )

    def start(self) -> None:
        """Start and return once /health answers 200; RuntimeError with the log tail if not."""
        self._log = self.log_path.open("wb")
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        give_up_at_s = time.monotonic() + START_TIMEOUT_S
        while not self.is_healthy():
            if self._process.poll() is not None or time.monotonic() > give_up_at_s:
                code = self._process.poll()
                self.stop()
                raise RuntimeError(
                    f"{' '.join(self._command)} is not healthy (exit code {code}); "
                    f"its log ends with\n{self.log_tail()}"
                )
            time.sleep(0.5)

    def stop(self) -> None:
        """End the whole process group; harmless if it has ended already."""
        self._client.close()
        if self._process is not None:
            for sig in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(self._process.pid, sig)
                    self._process.wait(STOP_TIMEOUT_S)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue
        if self._log is not None:
            self._log.close()

    def kill(self) -> None:
        """SIGKILL to the whole process group at once; `start` may follow, on the same port."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def is_healthy(self) -> bool:
        try:
            return self._client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def log_tail(self, num_lines: int = LOG_TAIL_LINES) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(line[:LOG_LINE_CHARACTERS] for line in lines[-num_lines:])

    def get(self, path: str) -> httpx.Response:
        return self._client.get(path)

    def post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        return self._client.post(path, json=body)

    def post_text(self, path: str, body: str) -> httpx.Response:
        """Send a JSON text as it is (for NaN, which `post` refuses to write)."""
        return self._client.post(path, content=body, headers={"Content-Type": "application/json"})

    def stream(self, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Every `data:` event of a streaming answer, `[DONE]` left out."""
        return list(self.iterate(path, body))

    def iterate(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """As `stream`, but event by event while the server still generates."""
        with self._client.stream("POST", path, json={**body, "stream": True}) as response:
            if response.status_code != 200:
                response.read()
                raise AssertionError(f"{path} answered {response.status_code}: {response.text}")
            yield from events(response.iter_lines())


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The JSON payloads of a server-sent event stream."""
    for line in lines:
        if line.startswith("data:") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data:"))


def free_port() -> int:
    """A loopback TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
