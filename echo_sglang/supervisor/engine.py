"""One engine process: started with the listening socket, read, and ended with all it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import psutil

from echo_sglang.supervisor.blame import count_oom_kills
from echo_sglang.supervisor.channel import ACCEPTING, BEAT, GO, LOST, Inherited, message, parse
from echo_sglang.supervisor.restarts import Beat, Exited

TAIL_LINES = 40
LINE_BYTES = 2000
LAST_LINES_S = 2.0

Told = Callable[["Engine", Beat | Exited], None]


class Engine:
    """A running engine in a session of its own. Start it from the main thread.

    The kernel ends the engine when the thread that started it ends, so that thread must live as
    long as the supervisor does.
    told: called from other threads with this engine and what happened to it.
    accepting: called from another thread when the engine is about to accept connections; it
    does when the call returns.
    blame_requests: what the engine is told of the one before it.
    lost: what it said of its own processes before it ended, see `blame.EngineEnd`; complete
    once it is told that it exited.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        listener: socket.socket,
        *,
        told: Told,
        accepting: Callable[[Engine], None],
        blame_requests: bool,
    ) -> None:
        self._told = told
        self._accepting = accepting
        self._tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        self._unreaped = threading.Lock()
        self._reaped = False
        self.lost: tuple[int, ...] | None = None
        self._oom_kills_before = count_oom_kills()
        self._channel, theirs = socket.socketpair()
        with theirs:
            inherited = Inherited(theirs.fileno(), listener.fileno(), os.getpid(), blame_requests)
            self._process = subprocess.Popen(
                command,
                env={"PYTHONUNBUFFERED": "1", **environment, **inherited.to_environment()},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[inherited.channel_fd, inherited.listen_fd],
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._log_reader = threading.Thread(target=self._read_log, daemon=True)
        self._log_reader.start()
        self._channel_reader = threading.Thread(target=self._read_channel, daemon=True)
        self._channel_reader.start()
        threading.Thread(target=self._wait, daemon=True).start()

    def last_lines(self) -> list[str]:
        """The end of its log."""
        return [line.decode(errors="replace") for line in list(self._tail)]

    def oom_kills(self) -> int | None:
        """Processes that the kernel ended for want of memory since this engine was started."""
        now = count_oom_kills()
        before = self._oom_kills_before
        return None if now is None or before is None else now - before

    def drain(self) -> None:
        """Ask it to finish and to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all it started at once."""
        for child in self._descendants():
            _kill(child)
        self._signal(signal.SIGKILL)

    def _descendants(self) -> list[psutil.Process]:
        with self._unreaped:
            if self._reaped:
                return []
            try:
                return list(psutil.Process(self.pid).children(recursive=True))
            except psutil.NoSuchProcess:
                return []

    def _signal(self, number: signal.Signals) -> None:
        with self._unreaped:
            if not self._reaped:
                os.kill(self.pid, number)

    def _read_log(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        for line in iter(lambda: stream.readline(LINE_BYTES), b""):
            self._tail.append(line.rstrip())
            # A reader that went away must not stop the engine, whose log would back up.
            with suppress(OSError):
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()

    def _read_channel(self) -> None:
        with self._channel, self._channel.makefile("rb") as lines:
            try:
                for line in lines:
                    self._hear(parse(line))
            except OSError:
                return

    def _hear(self, said: dict[str, object]) -> None:
        if said.get("says") == ACCEPTING:
            self._accepting(self)
            self._channel.sendall(message(GO))
        elif said.get("says") == BEAT:
            self._told(self, Beat(ready=said.get("ready") is True))
        elif said.get("says") == LOST:
            codes = said.get("codes")
            if isinstance(codes, list):
                self.lost = tuple(code for code in codes if isinstance(code, int))

    def _wait(self) -> None:
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        # While the dead engine is not reaped nobody else can have its process group.
        with self._unreaped:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            code = self._process.wait()
            self._reaped = True
        self._log_reader.join(LAST_LINES_S)
        self._channel_reader.join(LAST_LINES_S)
        self._told(self, Exited(code))


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()
