"""When an engine is started, killed, drained or given up: a pure state machine.

    STARTING --ready--> SERVING --stop asked--> DRAINING --exited--> STOPPED
       | ^                 |
       | |                 | no beat for hang_s
       | +--WAITING<--exited--ENDING
       +--not ready in start_s--^

A stop asked for in STARTING drains an engine that takes connections already and kills one that
does not.

`advance` takes a state, an event and the time and returns the next state and what to do. An
engine is alive in STARTING, SERVING, ENDING and DRAINING, and in no other phase.
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass, field, replace
from enum import StrEnum

REFUSED_EXIT_CODE = 2
"""The launcher and argparse end with it when a flag is wrong: starting again cannot help."""


class Phase(StrEnum):
    """Where the engine is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    ENDING = "ending"
    WAITING = "waiting"
    DRAINING = "draining"
    STOPPED = "stopped"


ALIVE = frozenset({Phase.STARTING, Phase.SERVING, Phase.ENDING, Phase.DRAINING})
"""The phases in which an engine process exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How patient the supervisor is; seconds. A failure is an end that nobody asked for."""

    start_s: float = 1800.0
    """From start to ready."""
    hang_s: float = 60.0
    """Without a beat of a ready engine until it counts as hung."""
    drain_s: float = 60.0
    """That running online requests get after a stop was asked for."""
    exit_s: float = 45.0
    """On top of drain_s for the engine to end."""
    first_backoff_s: float = 1.0
    largest_backoff_s: float = 60.0
    healthy_after_s: float = 120.0
    """Ready for so long, an engine's earlier failures are forgotten."""
    most_failures: int = 5
    """So many in a row, and the supervisor gives up."""

    def __post_init__(self) -> None:
        for name in ("start_s", "hang_s", "first_backoff_s", "largest_backoff_s", "exit_s"):
            assert getattr(self, name) > 0, name
        assert self.drain_s >= 0 and self.healthy_after_s >= 0 and self.most_failures >= 1

    def backoff_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row: doubling, bounded."""
        exponent = min(failures - 1, 64)
        return float(min(self.first_backoff_s * 2.0**exponent, self.largest_backoff_s))


@dataclass(frozen=True, slots=True)
class Beat:
    """The engine's scheduler answered; `ready` once its warm-up is done."""

    ready: bool


@dataclass(frozen=True, slots=True)
class Accepting:
    """The engine takes connections from now on; requests may be on their way before it is ready."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The engine process is gone; `code` is negative for a signal, as in subprocess."""

    code: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    """SIGTERM or SIGINT to the supervisor."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Accepting | Beat | Exited | StopAsked | Tick


@dataclass(frozen=True, slots=True)
class StartEngine:
    """Start a new engine."""


@dataclass(frozen=True, slots=True)
class KillEngine:
    """SIGKILL to the engine and all it started."""

    reason: str


@dataclass(frozen=True, slots=True)
class DrainEngine:
    """Ask the engine to finish what is online and to end."""


@dataclass(frozen=True, slots=True)
class Finish:
    """End the supervisor with this exit code."""

    code: int
    reason: str


Action = StartEngine | KillEngine | DrainEngine | Finish


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """The state: phase, since when, and what is remembered of earlier engines."""

    phase: Phase
    since_s: float
    accepts: bool = False
    """True once the engine takes connections."""
    ready_s: float | None = None
    """When the engine became ready; None before."""
    beat_s: float | None = None
    """When it last answered after that."""
    killed_for: str | None = None
    """Why it was sent SIGKILL; None if it was not."""
    failures: int = 0
    start_took_s: float | None = None
    """Of the last engine that became ready."""
    last_end: str | None = None
    """How the last engine ended."""
    forced: bool = field(default=False)
    """True once a drain was cut short."""


Step = tuple[Supervision, tuple[Action, ...]]


def first_start(now_s: float) -> Step:
    """The state to begin with, and the start of the first engine."""
    return Supervision(phase=Phase.STARTING, since_s=now_s), (StartEngine(),)


def advance(state: Supervision, event: Event, now_s: float, limits: Limits) -> Step:
    """The next state and what to do. Events that mean nothing in this phase change nothing."""
    if state.phase is Phase.STOPPED:
        return state, ()
    match event:
        case Accepting():
            return replace(state, accepts=state.phase is Phase.STARTING or state.accepts), ()
        case Beat(ready):
            return _beat(state, now_s, ready), ()
        case Exited(code):
            return _exited(state, code, now_s, limits)
        case StopAsked():
            return _stop_asked(state, now_s)
        case Tick():
            return _tick(state, now_s, limits)


def next_wake_s(state: Supervision, limits: Limits) -> float | None:
    """When `advance` wants its next Tick; None if only an event can change anything."""
    match state.phase:
        case Phase.STARTING:
            return state.since_s + limits.start_s
        case Phase.SERVING:
            assert state.beat_s is not None
            return state.beat_s + limits.hang_s
        case Phase.ENDING:
            return state.since_s + limits.exit_s
        case Phase.WAITING:
            return state.since_s + limits.backoff_s(state.failures)
        case Phase.DRAINING:
            return state.since_s + limits.drain_s + limits.exit_s
        case Phase.STOPPED:
            return None


def retry_after_s(state: Supervision, now_s: float, limits: Limits) -> int:
    """What to tell a client that is turned away: whole seconds until an engine may be ready."""
    passed_s = now_s - state.since_s
    start_s = 30.0 if state.start_took_s is None else state.start_took_s
    wait_s = start_s
    if state.phase is Phase.STARTING:
        wait_s = start_s - passed_s
    elif state.phase is Phase.WAITING:
        wait_s = limits.backoff_s(state.failures) - passed_s + start_s
    return max(math.ceil(wait_s), 1)


def describe_exit(code: int) -> str:
    """An exit code in words: `exit code 1`, `SIGKILL (signal 9)`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"{signal.Signals(-code).name} (signal {-code})"
    except ValueError:
        return f"signal {-code}"


def _beat(state: Supervision, now_s: float, ready: bool) -> Supervision:
    if state.phase is Phase.SERVING:
        return replace(state, beat_s=now_s)
    if state.phase is Phase.STARTING and ready:
        return replace(
            state,
            phase=Phase.SERVING,
            since_s=now_s,
            ready_s=now_s,
            beat_s=now_s,
            start_took_s=now_s - state.since_s,
        )
    return state


def _exited(state: Supervision, code: int, now_s: float, limits: Limits) -> Step:
    if state.phase not in ALIVE:
        return state, ()
    end = state.killed_for or f"it ended with {describe_exit(code)}"
    if state.phase is Phase.DRAINING:
        good = not state.forced and (code == 0 or state.killed_for is not None)
        reason = state.killed_for or "drained" if good else end
        return _finish(state, 0 if good else 1, reason, now_s)
    if code == REFUSED_EXIT_CODE and state.ready_s is None and state.killed_for is None:
        return _finish(state, code, "the engine refused its flags or its model", now_s)
    healthy = state.ready_s is not None and now_s - state.ready_s >= limits.healthy_after_s
    failures = 1 if healthy else state.failures + 1
    if failures >= limits.most_failures:
        reason = f"{failures} failures in a row without {limits.healthy_after_s:g} s of health: "
        return _finish(state, 1, f"{reason}the last time, {end}", now_s)
    waiting = Supervision(
        phase=Phase.WAITING,
        since_s=now_s,
        failures=failures,
        start_took_s=state.start_took_s,
        last_end=end,
    )
    return waiting, ()


def _stop_asked(state: Supervision, now_s: float) -> Step:
    draining = replace(state, phase=Phase.DRAINING, since_s=now_s)
    match state.phase:
        case Phase.SERVING:
            return draining, (DrainEngine(),)
        case Phase.STARTING if state.accepts:
            return draining, (DrainEngine(),)
        case Phase.STARTING | Phase.ENDING:
            reason = "a stop was asked for before it served"
            return replace(draining, killed_for=reason), (KillEngine(reason),)
        case Phase.DRAINING:
            return _force(state, now_s, "a second signal cut the drain short")
        case _:
            return _finish(state, 0, "stopped while no engine ran", now_s)


def _tick(state: Supervision, now_s: float, limits: Limits) -> Step:
    due_s = next_wake_s(state, limits)
    if due_s is None or now_s < due_s:
        return state, ()
    match state.phase:
        case Phase.WAITING:
            return replace(state, phase=Phase.STARTING, since_s=now_s), (StartEngine(),)
        case Phase.STARTING:
            return _end(state, now_s, f"it was not ready within {limits.start_s:g} s")
        case Phase.SERVING:
            return _end(state, now_s, f"it hung: its scheduler was silent for {limits.hang_s:g} s")
        case Phase.ENDING:
            assert state.killed_for is not None
            return replace(state, since_s=now_s), (KillEngine(state.killed_for),)
        case _:
            return _force(state, now_s, "it did not end within the time a drain may take")


def _end(state: Supervision, now_s: float, reason: str) -> Step:
    ending = replace(state, phase=Phase.ENDING, since_s=now_s, killed_for=reason)
    return ending, (KillEngine(reason),)


def _force(state: Supervision, now_s: float, reason: str) -> Step:
    return replace(state, since_s=now_s, killed_for=reason, forced=True), (KillEngine(reason),)


def _finish(state: Supervision, code: int, reason: str, now_s: float) -> Step:
    stopped = replace(state, phase=Phase.STOPPED, since_s=now_s, last_end=reason)
    return stopped, (Finish(code, reason),)
