"""A real server whose scheduler loop is stepped by generators of these tests.

SGLang's scripted runtime (sglang/test/scripted_runtime) runs a generator inside the scheduler
process: one `next` per iteration, before requests are taken in. Its own starter cannot go
through a launcher of our choice, so this one starts a LiveServer and speaks its protocol:
pickled messages over a ZMQ pair.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import zmq

from tests.e2e.live_server import ECHO_MODULE, LiveServer

HOST = "127.0.0.1"
SCRIPT_TIMEOUT_S = 240.0
PROJECT_ROOT = Path(__file__).resolve().parents[2]

SCRIPTED_FLAGS = (
    *("--dtype", "float32"),
    *("--json-model-override-args", '{"num_hidden_layers": 4}'),
    *("--context-length", "1024"),
    "--skip-server-warmup",
)
"""float32: a row's greedy tokens do not depend on who shares its batch. The first four layers
of the model: its words mean little, but each depends on all tokens before it, and a step takes
milliseconds."""


class _PausedServer(LiveServer):
    def run_with(self, python: str) -> None:
        self._command[0] = python

    def is_healthy(self) -> bool:
        """/health asks the scheduler, which stands still until a script runs."""
        try:
            return self.get("/model_info").status_code == 200
        except httpx.TransportError:
            return False


class ScriptedServer:
    """Runs scripts: generator functions `script(ctx, *args)` of importable modules."""

    def __init__(
        self,
        *,
        model_path: str,
        folder: Path,
        module: str = ECHO_MODULE,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        python: str = sys.executable,
    ) -> None:
        self._error_path = folder / "scheduler_error.json"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        port = self._socket.bind_to_random_port(f"tcp://{HOST}")
        echo = module == ECHO_MODULE and "--echo-off" not in flags
        search_path = [str(PROJECT_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.live = _PausedServer(
            model_path=model_path,
            log_path=folder / "server.log",
            module=module,
            flags=[*SCRIPTED_FLAGS, *flags],
            environment={
                "PYTHONPATH": os.pathsep.join(search_path),
                "SGLANG_TEST_SCRIPTED_RUNTIME": "1",
                "SGLANG_TEST_SCRIPTED_RUNTIME_IPC_ADDR": f"tcp://{HOST}:{port}",
                "SGLANG_TEST_SCRIPTED_RUNTIME_OUT_OF_BAND_ERROR_PATH": str(self._error_path),
                # The runtime inspects the tree core, which it can only in Python.
                "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND": "echo" if echo else "python",
                "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
                "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
                **(environment or {}),
            },
        )

        self.live.run_with(python)

    def start(self) -> None:
        """Return once the scheduler waits for scripts and HTTP answers."""
        from sglang.test.scripted_runtime.io_struct import HookReady

        self.live.start()
        reply = self._reply("the scheduler's first word")
        assert isinstance(reply, HookReady), reply

    def run(self, script: Callable[..., Any], *args: Any) -> None:
        """Run one script to its end; AssertionError with its traceback if it fails."""
        from sglang.test.scripted_runtime.io_struct import (
            RunScript,
            ScriptFailed,
            ScriptSucceeded,
        )

        path = f"{script.__module__}:{script.__qualname__}"
        self._socket.send_pyobj(RunScript(fn_path=path, args=args))
        reply = self._reply(path)
        if isinstance(reply, ScriptFailed):
            raise AssertionError(f"{path} failed in the scheduler:\n{reply.traceback}")
        assert isinstance(reply, ScriptSucceeded), reply

    def stop(self) -> None:
        """End the server; harmless if it has ended already."""
        self.live.stop()
        self._socket.close(linger=0)
        self._context.term()

    def _reply(self, what: str) -> Any:
        waited_s = 0.0
        while not self._socket.poll(1000):
            waited_s += 1.0
            if waited_s >= SCRIPT_TIMEOUT_S or not self.live.is_running():
                raise AssertionError(
                    f"no answer to {what}; the scheduler said {self._scheduler_error()}; "
                    f"the log ends with\n{self.live.log_tail()}"
                )
        return self._socket.recv_pyobj()

    def _scheduler_error(self) -> str:
        return self._error_path.read_text() if self._error_path.exists() else "nothing"
