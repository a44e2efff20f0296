"""What holds of the supervisor's decisions whatever happens, played as a world would."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from echo_sglang.supervisor.restarts import (
    ALIVE,
    Accepting,
    Beat,
    Event,
    Exited,
    Finish,
    KillEngine,
    Limits,
    Phase,
    StartEngine,
    StopAsked,
    Tick,
    advance,
    first_start,
    next_wake_s,
)

LIMITS = Limits(
    start_s=50.0, hang_s=10.0, drain_s=20.0, exit_s=5.0, healthy_after_s=30.0, most_failures=3
)

EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.just(Accepting()),
    st.builds(Beat, st.booleans()),
    st.builds(Exited, st.integers(-15, 3)),
    st.just(StopAsked()),
    st.just(Tick()),
)
STEPS = st.lists(st.tuples(st.floats(0.0, 40.0), EVENTS), max_size=60)


@given(STEPS)
def test_one_engine_at_most_is_alive_and_the_end_is_final(steps: list[tuple[float, Event]]) -> None:
    state, _ = first_start(0.0)
    now_s, alive, finished, asked = 0.0, True, False, False
    failures_since_health = 0
    for after_s, event in steps:
        now_s += after_s
        if isinstance(event, (Accepting, Beat, Exited)) and not alive:
            continue
        asked = asked or isinstance(event, StopAsked)
        was_long_ready = state.ready_s is not None and now_s - state.ready_s >= 30.0
        state, actions = advance(state, event, now_s, LIMITS)
        assert not (finished and actions)
        if isinstance(event, Exited):
            alive = False
            failures_since_health = 1 if was_long_ready else failures_since_health + 1
        for action in actions:
            match action:
                case StartEngine():
                    assert not alive and not asked
                    alive = True
                case Finish(code, reason):
                    assert reason and code in (0, 1, 2)
                    finished = True
                case _:
                    assert alive
        assert finished == (state.phase is Phase.STOPPED)
        assert finished or alive == (state.phase in ALIVE)
        assert finished or failures_since_health < LIMITS.most_failures


@given(STEPS)
def test_a_silent_world_always_comes_to_an_action_in_bounded_time(
    steps: list[tuple[float, Event]],
) -> None:
    state, _ = first_start(0.0)
    now_s = 0.0
    for after_s, event in steps:
        now_s += after_s
        state, _ = advance(state, event, now_s, LIMITS)
    if state.phase is Phase.STOPPED:
        assert next_wake_s(state, LIMITS) is None
        return
    wake_s = next_wake_s(state, LIMITS)
    assert wake_s is not None and wake_s - now_s <= LIMITS.largest_backoff_s
    _, actions = advance(state, Tick(), max(wake_s, now_s), LIMITS)
    assert len(actions) == 1 and isinstance(actions[0], (StartEngine, KillEngine))


@given(st.integers(1, 200))
def test_backoffs_grow_and_stay_bounded(failures: int) -> None:
    now, then = LIMITS.backoff_s(failures), LIMITS.backoff_s(failures + 1)
    assert 0 < now <= then <= LIMITS.largest_backoff_s
