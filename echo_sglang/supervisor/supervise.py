"""The supervisor's loop: events in, `restarts.advance`, actions out."""

from __future__ import annotations

import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from echo_sglang.supervisor.blame import EngineEnd, may_be_of_requests
from echo_sglang.supervisor.door import Door, Unavailable
from echo_sglang.supervisor.engine import Engine
from echo_sglang.supervisor.restarts import (
    Accepting,
    DrainEngine,
    Event,
    Exited,
    Finish,
    KillEngine,
    Limits,
    Phase,
    StartEngine,
    StopAsked,
    Supervision,
    Tick,
    advance,
    describe_exit,
    first_start,
    next_wake_s,
    retry_after_s,
)

REPORTED_LINES = 15
LONGEST_WAIT_S = 3600.0

Clock = Callable[[], float]


class Supervisor:
    """Runs engines made of `command` on `listener` until told to stop or until it gives up.

    tls: uvicorn's ssl_* options for the answers it gives itself.
    clock: monotonic seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        listener: socket.socket,
        *,
        tls: dict[str, Any],
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._command = command
        self._environment = environment
        self._listener = listener
        self._limits = limits
        self._clock = clock
        self._events: queue.SimpleQueue[tuple[Engine | None, Event]] = queue.SimpleQueue()
        self._door = Door(listener, self._why, tls)
        self._door_turns = threading.Lock()
        self._engine: Engine | None = None
        self._blame_requests = True
        self._state, self._first = first_start(clock())

    def run(self) -> int:
        """Returns the exit code. Call in the main thread, which must not end before it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._events.put((None, StopAsked())))
        self._door.open()
        code = self._apply(self._first)
        while code is None:
            code = self._next()
        self._door.close()
        self._listener.close()
        return code

    def _next(self) -> int | None:
        wake_s = next_wake_s(self._state, self._limits)
        assert wake_s is not None
        wait_s = min(max(wake_s - self._clock(), 0.0), LONGEST_WAIT_S)
        try:
            engine, event = self._events.get(timeout=wait_s)
        except queue.Empty:
            engine, event = None, Tick()
        if engine is not None and engine is not self._engine:
            return None
        if isinstance(event, Exited):
            self._engine_ended(event)
        before = self._state
        self._state, actions = advance(before, event, self._clock(), self._limits)
        self._report(before)
        return self._apply(actions)

    def _apply(self, actions: Sequence[object]) -> int | None:
        for action in actions:
            match action:
                case StartEngine():
                    self._start()
                case KillEngine(reason):
                    say(f"killing the engine: {reason}")
                    assert self._engine is not None
                    self._engine.kill()
                case DrainEngine():
                    say(f"draining, for at most {self._limits.drain_s:g} s")
                    assert self._engine is not None
                    self._engine.drain()
                case Finish(code, reason):
                    say(f"stopped with exit code {code}: {reason}")
                    return code
        return None

    def _start(self) -> None:
        with self._door_turns:
            self._engine = Engine(
                self._command,
                self._environment,
                self._listener,
                told=lambda engine, event: self._events.put((engine, event)),
                accepting=self._let_in,
                blame_requests=self._blame_requests,
            )
        say(f"engine {self._engine.pid} started")

    def _let_in(self, engine: Engine) -> None:
        self._events.put((engine, Accepting()))
        with self._door_turns:
            if engine is self._engine:
                self._door.close()

    def _engine_ended(self, event: Exited) -> None:
        assert self._engine is not None
        say(f"engine {self._engine.pid} ended: {describe_exit(event.code)}")
        if event.code != 0 and self._state.phase is not Phase.DRAINING:
            for line in self._engine.last_lines()[-REPORTED_LINES:]:
                say(f"  | {line}")
        self._judge(self._engine, event.code)
        with self._door_turns:
            self._engine = None
            self._door.open()

    def _judge(self, engine: Engine, code: int) -> None:
        """What to tell the next engine of the requests that this one had.

        One that never got ready had none, and may not have seen those of the one before it.
        """
        end = EngineEnd(
            code=code,
            lost=engine.lost,
            killed=self._state.killed_for is not None,
            oom_kills=engine.oom_kills(),
        )
        blame = may_be_of_requests(end)
        served = self._state.ready_s is not None
        self._blame_requests = blame if served else blame or self._blame_requests
        if not blame:
            say("it was ended from outside: its requests do not count this as a crash")

    def _report(self, before: Supervision) -> None:
        state = self._state
        if state.phase is before.phase:
            return
        if state.phase is Phase.SERVING:
            say(f"the engine is ready after {state.start_took_s:.1f} s")
        elif state.phase is Phase.WAITING:
            wait_s = self._limits.backoff_s(state.failures)
            say(
                f"failure {state.failures} of at most {self._limits.most_failures} in a row: "
                f"{state.last_end}; starting again in {wait_s:g} s"
            )

    def _why(self) -> Unavailable:
        state, now_s = self._state, self._clock()
        seconds = retry_after_s(state, now_s, self._limits)
        if state.phase in (Phase.DRAINING, Phase.STOPPED):
            return Unavailable("The server is shutting down.", seconds)
        before = "" if state.last_end is None else f" after a failure ({state.last_end})"
        return Unavailable(f"The engine is starting{before}; retry in {seconds} s.", seconds)


def say(line: str) -> None:
    """One line of the supervisor's own, beside the engine's log."""
    with suppress(OSError):
        print(f"[echo-sglang serve] {line}", file=sys.stderr, flush=True)
