"""Start and stop one SGLang server, stock or Echo, in its own process group."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from echo_sglang.errors import EchoError
from echo_sglang.sim.environment import models_but

REPOSITORY = Path(__file__).resolve().parents[2]
STOCK_MODULE = "sglang.launch_server"
ECHO_MODULE = "echo_sglang.launch_server"
DEFAULT_MODEL = REPOSITORY / ".venv" / "model"
LOG_TAIL_LINES = 25
# GNU OpenMP threads spin for milliseconds before they sleep. Servers share their cores with
# this client, and one busy neighbour then makes a step ten times slower; a short spin bounds
# that and costs nothing on an idle machine.
OPENMP_SPIN_COUNT = "5000"
_QUIET_ENV = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
    "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
}


_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """For a child before its exec: it ends with the thread that starts it, however that ends.

    A server that outlives its test keeps a core busy and spoils every figure after it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def quick_start(model_path: Path) -> dict[str, str]:
    """Variables that keep SGLang from importing models nobody asked for: every server would spend
    ten seconds on it. None for a model that is no plain Llama, or is not there."""
    path = model_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.get("architectures") != ["LlamaForCausalLM"]:
        return {}
    return {"SGLANG_DISABLED_MODEL_ARCHS": ",".join(models_but("llama"))}


class ServerError(EchoError):
    """A server under test did not start, died, or did not answer as it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """How to start a server. flags: everything after `--model-path`, `--host` and `--port`."""

    module: str
    model_path: Path
    flags: tuple[str, ...]
    python: str = sys.executable
    platform: str = "echo_cpu"
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self, port: int) -> list[str]:
        """The whole command line."""
        model = str(self.model_path)
        address = ["--host", "127.0.0.1", "--port", str(port)]
        return [self.python, "-m", self.module, "--model-path", model, *address, *self.flags]

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with what the server needs on a CPU, and this repository importable."""
        paths = [str(REPOSITORY), base.get("PYTHONPATH", "")]
        found = {**base, **_QUIET_ENV, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
        if self.platform:
            found["SGLANG_PLATFORM"] = self.platform
        found.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
        found.setdefault("GOMP_SPINCOUNT", OPENMP_SPIN_COUNT)
        return found | dict(self.env)


class Server:
    """A running server; use it as a context manager, which always ends the whole group.

    Raises ServerError, with the end of the log, if the server does not come up or dies.
    """

    def __init__(
        self, spec: ServerSpec, *, log: Path, start_timeout_s: float = 180.0, poll_s: float = 0.5
    ) -> None:
        """poll_s: seconds between looks at whether it is up."""
        if not (spec.model_path / "config.json").is_file():
            raise ServerError(
                f"no model at {spec.model_path}: it needs config.json, the weights and the "
                "tokenizer. Make one with `python scripts/convert_model.py --output FOLDER`, or "
                "name a Hugging Face folder in ECHO_TEST_MODEL"
            )
        self.spec = spec
        self.log = log
        self._start_timeout_s = start_timeout_s
        self._poll_s = poll_s
        self._process: subprocess.Popen[bytes] | None = None
        self.base_url = ""

    def __enter__(self) -> Server:
        port = free_port()
        self.base_url = f"http://127.0.0.1:{port}"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as sink:
            self._process = subprocess.Popen(
                self.spec.command(port),
                env=quick_start(self.spec.model_path) | self.spec.environment(os.environ),
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the process that serves HTTP. Raises ServerError if it has ended."""
        self.check_alive()
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL to all its processes at once, as a crash or a power cut would end them."""
        os.killpg(self.pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._process = None

    def check_alive(self) -> None:
        """Raises ServerError if the server's process has ended."""
        if self._process is None or self._process.poll() is not None:
            code = None if self._process is None else self._process.returncode
            raise ServerError(f"the server ended with code {code}; {self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of the log, with where the rest is."""
        lines: list[str] = []
        if self.log.is_file():
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        tail = "\n".join(lines[-LOG_TAIL_LINES:])
        return f"end of {self.log}:\n{tail}"

    def flush_cache(self, *, timeout_s: float = 60.0) -> None:
        """Empty the KV cache once the server is idle. Raises ServerError if it stays busy."""
        deadline_s = time.monotonic() + timeout_s
        answer = ""
        while time.monotonic() < deadline_s:
            self.check_alive()
            with contextlib.suppress(httpx.HTTPError):
                response = httpx.post(f"{self.base_url}/flush_cache", timeout=30.0)
                if response.status_code == httpx.codes.OK:
                    return
                answer = response.text
            time.sleep(0.5)
        raise ServerError(
            f"the cache could not be flushed within {timeout_s:.0f} s, the server said "
            f"{answer!r}; {self.log_tail()}"
        )

    def get_json(self, path: str) -> dict[str, Any] | None:
        """The JSON object at `path`, or None if the server has no such page."""
        try:
            response = httpx.get(f"{self.base_url}{path}", timeout=30.0)
            found = response.json() if response.status_code == httpx.codes.OK else None
        except (httpx.HTTPError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def stop(self) -> None:
        """End the server and all its processes; does nothing if there is none."""
        if self._process is None:
            return
        for sign, wait_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=wait_s)
        self._process = None

    def _wait_until_healthy(self) -> None:
        deadline_s = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline_s:
            self.check_alive()
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.base_url}/health", timeout=5.0).status_code == httpx.codes.OK:
                    return
            time.sleep(self._poll_s)
        raise ServerError(
            f"the server was not healthy within {self._start_timeout_s:.0f} s; {self.log_tail()}"
        )


def exit_on_sigterm() -> None:
    """Let SIGTERM unwind this process like an error does, so that its server ends with it."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on.

    SGLang derives further ports from it, so it stays well below the end of the range.
    """
    for port in range(31000 + os.getpid() % 1000, 45000, 7):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise ServerError("no free TCP port between 31000 and 45000 on 127.0.0.1")


def default_model_path() -> Path:
    """The model folder named by ECHO_TEST_MODEL, else where `make` puts the small model."""
    return Path(os.environ.get("ECHO_TEST_MODEL") or DEFAULT_MODEL).expanduser()
