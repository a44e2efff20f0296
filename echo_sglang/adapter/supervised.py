"""The engine's side of `echo-sglang serve`: the inherited port, the beat, and dying together."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from echo_sglang.adapter.verify import verify_hooked
from echo_sglang.errors import ConfigError, IncompatibleError
from echo_sglang.supervisor.channel import (
    ACCEPTING,
    BEAT,
    GO,
    INHERITED_ENV,
    LOST,
    Inherited,
    inherited_from,
    message,
    parse,
)

STARTUP = "uvicorn.Server.startup"
GIVING_UP = "sglang.srt.managers.tokenizer_manager.SignalHandler.running_phase_sigquit_handler"
BEAT_INTERVAL_S = 1.0
_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


class SupervisedServer:
    """This process's connection to its supervisor."""

    def __init__(self, inherited: Inherited) -> None:
        self.listener = socket.socket(fileno=inherited.listen_fd)
        self.channel = socket.socket(fileno=inherited.channel_fd)
        self.blame_requests = inherited.blame_requests
        for each in (self.listener, self.channel):
            each.set_inheritable(False)
        self._beats: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port of the inherited socket."""
        return int(self.listener.getsockname()[1])

    async def start_on_inherited(
        self, startup: Callable[..., Any], server: uvicorn.Server, sockets: Any = None
    ) -> None:
        """Around `uvicorn.Server.startup`: the supervisor steps aside, then this accepts."""
        await asyncio.to_thread(self._ask_for_the_port)
        await startup(server, sockets=[self.listener])
        self._beats = asyncio.get_running_loop().create_task(self._beat())

    def _ask_for_the_port(self) -> None:
        self.channel.sendall(message(ACCEPTING))
        said = parse(self.channel.makefile("rb").readline())
        if said.get("says") != GO:
            raise RuntimeError("the supervisor is gone")

    def tell_what_was_lost(self, handler: Any, *_: Any, **__: Any) -> None:
        """Before SGLang's handler of SIGQUIT ends everything: which of its processes are dead,
        and how. None of them yet if one reported an error and asked for the end."""
        watchdog = handler.tokenizer_manager._subprocess_watchdog
        processes = [] if watchdog is None else watchdog._processes
        codes = [process.exitcode for process in processes if process.exitcode]
        with contextlib.suppress(OSError):
            self.channel.sendall(message(LOST, codes=codes))

    async def _beat(self) -> None:
        """Tell the supervisor once a second that the scheduler answered, as long as it does."""
        from sglang.srt.entrypoints import http_server
        from sglang.srt.managers.tokenizer_manager import ServerStatus

        manager = http_server._global_state.tokenizer_manager
        ready = False
        while True:
            await manager.get_internal_state()
            ready = ready or manager.server_status is ServerStatus.Up
            self.channel.sendall(message(BEAT, ready=ready))
            await asyncio.sleep(BEAT_INTERVAL_S)


def join_supervisor() -> SupervisedServer | None:
    """None if this process has no supervisor. Call before SGLang loads its plugins.

    Takes the variables out of the environment: they mean nothing to SGLang's processes.
    """
    inherited = inherited_from(os.environ)
    if inherited is None:
        return None
    for name in INHERITED_ENV:
        os.environ.pop(name, None)
    _die_with(inherited.supervisor_pid)
    server = SupervisedServer(inherited)
    HookRegistry.register(STARTUP, server.start_on_inherited, HookType.AROUND)
    HookRegistry.register(GIVING_UP, server.tell_what_was_lost, HookType.BEFORE)
    return server


def check_supervised(server: SupervisedServer, server_args: Any) -> None:
    """Raise unless this SGLang will serve on the inherited port."""
    if not hasattr(uvicorn.Server.startup, "__wrapped__"):
        raise IncompatibleError(
            f"SGLang did not put the hook on {STARTUP} in place, so this engine cannot take the "
            "port of its supervisor; install the pinned releases of sglang and uvicorn"
        )
    verify_hooked([GIVING_UP])
    if server_args.port != server.port:
        raise ConfigError(
            f"SGLang would use port {server_args.port}, the supervisor listens on {server.port}: "
            "give echo-sglang serve the port on its command line (--port), not in --config"
        )


def _die_with(supervisor_pid: int) -> None:
    """Let the kernel end this process with its supervisor, even one that was killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor_pid:
        os.kill(os.getpid(), signal.SIGKILL)
