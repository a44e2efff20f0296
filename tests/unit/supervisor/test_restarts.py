"""The supervisor's decisions, event by event."""

from __future__ import annotations

import pytest

from echo_sglang.supervisor.restarts import (
    Accepting,
    Beat,
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

LIMITS = Limits(
    start_s=100.0,
    hang_s=10.0,
    drain_s=20.0,
    exit_s=5.0,
    first_backoff_s=1.0,
    largest_backoff_s=8.0,
    healthy_after_s=60.0,
    most_failures=4,
)
READY = Beat(ready=True)


def play(*events: tuple[float, Event]) -> tuple[Supervision, list[object]]:
    """Play timed events from a start at 0; the last state and every action after the first."""
    state, _ = first_start(0.0)
    done: list[object] = []
    for now_s, event in events:
        state, actions = advance(state, event, now_s, LIMITS)
        done.extend(actions)
    return state, done


def test_an_engine_that_crashed_is_started_again_after_the_backoff() -> None:
    state, done = play((5.0, READY), (9.0, Exited(-9)))
    assert (state.phase, done) == (Phase.WAITING, [])
    assert next_wake_s(state, LIMITS) == 10.0
    assert advance(state, Tick(), 9.9, LIMITS) == (state, ())
    again, actions = advance(state, Tick(), 10.0, LIMITS)
    assert (again.phase, actions) == (Phase.STARTING, (StartEngine(),))
    assert again.failures == 1
    assert state.last_end == "it ended with SIGKILL (signal 9)"


def test_a_ready_engine_that_is_silent_is_killed_and_started_again() -> None:
    state, done = play((5.0, READY), (6.0, READY), (15.9, Tick()))
    assert (state.phase, done) == (Phase.SERVING, [])
    state, done = play((5.0, READY), (6.0, READY), (16.0, Tick()), (16.1, Exited(-9)))
    assert [type(action) for action in done] == [KillEngine]
    assert state.phase is Phase.WAITING
    assert state.last_end == "it hung: its scheduler was silent for 10 s"


def test_a_beat_before_the_warm_up_is_done_does_not_make_it_ready() -> None:
    state, done = play((5.0, Beat(ready=False)), (99.0, Tick()))
    assert (state.phase, done) == (Phase.STARTING, [])
    state, done = play((5.0, Beat(ready=False)), (100.0, Tick()))
    assert done == [KillEngine("it was not ready within 100 s")]


def test_a_crash_loop_ends_with_the_last_reason() -> None:
    # Backoffs 1, 2, 4 s between the four failures.
    state, done = play(
        (1.0, Exited(1)),
        (2.0, Tick()),
        (3.0, Exited(1)),
        (5.0, Tick()),
        (6.0, Exited(1)),
        (10.0, Tick()),
        (11.0, Exited(-11)),
    )
    assert done[:3] == [StartEngine()] * 3
    assert isinstance(done[3], Finish) and done[3].code == 1
    assert "4 failures in a row" in done[3].reason and "SIGSEGV (signal 11)" in done[3].reason
    assert state.phase is Phase.STOPPED


def test_a_healthy_while_forgets_earlier_failures() -> None:
    state, _ = play((1.0, Exited(1)), (2.0, Tick()), (3.0, READY), (63.0, READY), (63.0, Exited(1)))
    assert state.failures == 1
    state, _ = play((1.0, Exited(1)), (2.0, Tick()), (3.0, READY), (62.0, READY), (62.0, Exited(1)))
    assert state.failures == 2


def test_refused_flags_end_the_supervisor_at_once() -> None:
    _, done = play((4.0, Exited(2)))
    assert done == [Finish(2, "the engine refused its flags or its model")]
    state, _ = play((4.0, READY), (5.0, Exited(2)))
    assert state.phase is Phase.WAITING


def test_a_stop_drains_and_ends_with_zero() -> None:
    _, done = play((5.0, READY), (6.0, StopAsked()), (9.0, Exited(0)))
    assert done == [DrainEngine(), Finish(0, "drained")]


def test_a_second_stop_ends_at_once_and_says_so() -> None:
    _, done = play((5.0, READY), (6.0, StopAsked()), (7.0, StopAsked()), (7.1, Exited(-9)))
    reason = "a second signal cut the drain short"
    assert done == [DrainEngine(), KillEngine(reason), Finish(1, reason)]


def test_a_drain_that_does_not_end_is_cut_short_after_its_bound() -> None:
    state, done = play((5.0, READY), (6.0, StopAsked()), (30.9, Tick()))
    assert done == [DrainEngine()] and next_wake_s(state, LIMITS) == 31.0
    _, done = play((5.0, READY), (6.0, StopAsked()), (31.0, Tick()), (31.1, Exited(-9)))
    assert isinstance(done[-1], Finish) and done[-1].code == 1


def test_an_engine_that_crashes_while_draining_is_not_started_again() -> None:
    _, done = play((5.0, READY), (6.0, StopAsked()), (7.0, Exited(-9)))
    assert done == [DrainEngine(), Finish(1, "it ended with SIGKILL (signal 9)")]


@pytest.mark.parametrize("events", [[], [(1.0, Exited(1))]])
def test_a_stop_before_anything_is_served_ends_with_zero(events: list[tuple[float, Event]]) -> None:
    state, done = play(*events, (1.5, StopAsked()))
    if state.phase is not Phase.STOPPED:
        state, more = advance(state, Exited(-9), 1.6, LIMITS)
        done.extend(more)
    assert isinstance(done[-1], Finish) and done[-1].code == 0


def test_a_stop_drains_an_engine_that_takes_connections_but_is_not_ready() -> None:
    _, done = play((4.0, Accepting()), (4.5, StopAsked()), (6.0, Exited(0)))
    assert done == [DrainEngine(), Finish(0, "drained")]
    _, done = play((4.0, Accepting()), (4.5, StopAsked()), (6.0, Exited(1)))
    assert done == [DrainEngine(), Finish(1, "it ended with exit code 1")]


def test_the_next_engine_takes_no_connections_because_the_last_one_did() -> None:
    events = (4.0, Accepting()), (5.0, Exited(1)), (6.0, Tick())
    state, done = play(*events, (6.5, StopAsked()))
    assert isinstance(done[-1], KillEngine) and state.killed_for is not None


def test_an_engine_that_survives_a_kill_is_killed_again() -> None:
    _, done = play((5.0, READY), (15.0, Tick()), (20.0, Tick()))
    assert [type(action) for action in done] == [KillEngine, KillEngine]


def test_clients_are_told_when_the_next_engine_may_be_ready() -> None:
    state, _ = first_start(0.0)
    assert retry_after_s(state, 10.0, LIMITS) == 20
    # It took 5 s to start; 1 s of backoff is left to wait, of which half has passed.
    state, _ = play((5.0, READY), (9.0, Exited(-9)))
    assert retry_after_s(state, 9.5, LIMITS) == 6
    assert retry_after_s(state, 1000.0, LIMITS) == 1


def test_exits_are_told_in_words() -> None:
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-9) == "SIGKILL (signal 9)"
    assert describe_exit(-200) == "signal 200"
