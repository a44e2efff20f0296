"""Offline work costs online requests what was allowed and not more, and what was is used."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.plan import ChunkAction, Reason, ReleaseCause, StepPlan
from echo_sglang.domain.snapshot import ChunkInProgress, ImpactRoom
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.policy.coscheduler import decide
from echo_sglang.policy.impact import ImpactAccount, ImpactSettings, StepImpact
from echo_sglang.policy.impact_room import WithinImpact, expected, step_impact, thriftiest_chunk
from echo_sglang.policy.iteration import Iteration

from .builders import MODEL, candidate, online, row, snapshot, waiting
from .builders import SETTINGS as SETTINGS_OF_DECISIONS

SETTINGS = ImpactSettings(ttft=0.05, tpot=0.02, ttft_margin=1.0, tpot_margin=1.0)
TTFT_S = 0.08
WAITS_PER_S = 0.05 * TTFT_S
"""Seconds squared of waiting that a second allows, once first tokens take TTFT_S alone."""


def account_at(now_s: float = 0.0, settings: ImpactSettings = SETTINGS) -> ImpactAccount:
    account = ImpactAccount(settings)
    account.room(now_s)
    account.first_token(TTFT_S)
    return account


# ------------------------------------------------------------------ the account


def test_before_anything_was_allowed_there_is_no_room() -> None:
    room = ImpactAccount(SETTINGS).room(0.0)
    assert (room.waits_s2, room.begins) == (0.0, False)


def test_iterations_back_to_back_delay_an_arrival_by_half_their_length() -> None:
    account = account_at()
    for i in range(1, 20_001):
        account.step(0.02 * i, StepImpact(seconds=0.02))
    assert account.expected_wait_s == pytest.approx(0.01, rel=0.01)


def test_where_the_next_iteration_is_decided_ahead_an_arrival_waits_for_that_one_too() -> None:
    # 15 ms instead of 10: half of one longer and the whole next longer by 5 ms.
    step = StepImpact(seconds=0.015, alone_s=0.010, decode_s=0.010, decided_ahead=True)
    assert step.waits_s2 == pytest.approx(1.5 * (0.015**2 - 0.010**2))
    assert StepImpact(seconds=0.015).waits_s2 == pytest.approx(0.5 * 0.015**2)


def test_what_online_work_takes_itself_is_no_impact() -> None:
    account = account_at()
    for i in range(1, 2_001):
        account.step(0.015 * i, StepImpact(seconds=0.015, alone_s=0.015, decode_s=0.015))
    assert account.expected_wait_s == 0.0
    assert account.ttft_alone_s == TTFT_S
    room = account.room(30.0)
    assert room.begins and room.waits_s2 > 0.0 and room.longer_share > 0.0


def test_a_first_token_alone_is_the_median_measured_less_the_wait_that_was_caused() -> None:
    account = account_at()
    for _ in range(50):
        account.first_token(0.2)
        account.first_token(0.09)
        account.first_token(0.05)
    for i in range(1, 20_001):
        account.step(0.02 * i, StepImpact(seconds=0.02))
    assert account.ttft_alone_s == pytest.approx(0.09 - 0.01, rel=0.01)


def test_prefill_of_online_prompts_beside_online_rows_earns_no_more_than_their_decode_step() -> (
    None
):
    # 1,000 iterations of 60 ms, of which decode rows alone would take 12: 2 % of 12 ms each.
    account = account_at(settings=replace(SETTINGS, tokens_window_s=100.0))
    for i in range(1, 1_001):
        account.step(0.06 * i, StepImpact(seconds=0.06, alone_s=0.06, decode_s=0.012))
    assert account.room(60.0).begins
    account.step(60.0, StepImpact(seconds=0.239 + 0.012, alone_s=0.012, decode_s=0.012))
    assert account.room(60.0).begins
    account.step(60.0, StepImpact(seconds=0.002 + 0.012, alone_s=0.012, decode_s=0.012))
    assert not account.room(60.0).begins


def test_time_that_was_not_used_does_not_pay_for_more_than_a_window() -> None:
    account = account_at()
    for i in range(1, 100_001):
        account.step(0.01 * i, StepImpact(seconds=0.01, alone_s=0.01, decode_s=0.01))
    # Half a second of decode time has earned 10 ms; a thousand have earned no more.
    account.step(1000.0, StepImpact(seconds=0.01 + 0.0105, alone_s=0.01, decode_s=0.01))
    assert not account.room(1000.0).begins
    assert account.room(1000.0).longer_share > 0.0
    account.step(1000.0, StepImpact(seconds=0.01 + 0.0105, alone_s=0.01, decode_s=0.01))
    assert account.room(1000.0).longer_share == 0.0


@pytest.mark.parametrize("step_s", [0.005, 0.02, 0.1])
def test_idle_moments_are_used_until_the_mean_wait_is_what_was_allowed(step_s: float) -> None:
    account = account_at()
    now_s, busy_s, openings, was_open = 0.0, 0.0, 0, False
    while now_s < 600.0:
        runs = account.room(now_s).waits_s2 > 0.0
        openings += runs and not was_open
        was_open = runs
        now_s += step_s
        if runs:
            busy_s += step_s
            account.step(now_s, StepImpact(seconds=step_s))
            # What clients measure includes the wait: the account takes it off again.
            account.first_token(TTFT_S + account.expected_wait_s)
    wait_s = busy_s / now_s * step_s / 2.0
    assert wait_s == pytest.approx(min(0.05 * TTFT_S, step_s / 2.0), rel=0.1)
    # In stretches, so that rows are not sent away and called back all the time.
    assert openings <= 600.0 / 3.0


def test_beside_online_rows_the_share_allowed_is_used() -> None:
    account = account_at()
    now_s, alone_s, longer_s = 0.0, 0.0, 0.0
    for _ in range(40_000):
        extra_s = 0.00033 if account.room(now_s).begins else 0.0
        now_s += 0.0127 + extra_s
        account.step(now_s, StepImpact(seconds=0.0127 + extra_s, alone_s=0.0127, decode_s=0.0127))
        alone_s += 0.0127
        longer_s += extra_s
    assert longer_s / alone_s == pytest.approx(0.02, rel=0.02)


STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 3.0),  # idle before
        st.floats(0.0, 0.05),  # time of the online part
        st.floats(0.0, 0.05),  # of the offline part, if there is room
    ),
    max_size=300,
)


@given(steps=STEPS)
def test_never_is_more_spent_than_was_allowed_and_one_window_and_one_iteration(
    steps: list[tuple[float, float, float]],
) -> None:
    account = account_at()
    now_s = decode_s = longer_s = waits_s2 = most_longer_s = most_waits_s2 = 0.0
    for idle_s, alone_s, offline_s in steps:
        now_s += idle_s
        room = account.room(now_s)
        may_run = room.longer_share > 0.0 if alone_s else room.waits_s2 > 0.0
        seconds = alone_s + (offline_s if may_run else 0.0)
        now_s += seconds
        step = StepImpact(seconds=seconds, alone_s=alone_s, decode_s=alone_s)
        account.step(now_s, step)
        decode_s += alone_s
        longer_s += step.longer_s
        waits_s2 += step.waits_s2
        most_longer_s = max(most_longer_s, step.longer_s)
        most_waits_s2 = max(most_waits_s2, step.waits_s2)
    assert longer_s <= 0.02 * (decode_s + SETTINGS.tokens_window_s) + most_longer_s + 1e-9
    allowed_s2 = WAITS_PER_S * (now_s + SETTINGS.waits_window_s)
    assert waits_s2 <= allowed_s2 + most_waits_s2 + 1e-9


def test_a_clock_that_stands_still_or_goes_back_allows_nothing_more() -> None:
    account = account_at(100.0)
    before = account.room(200.0)
    assert account.room(150.0) == before


# ---------------------------------------------------------- what an iteration cost


def test_what_an_iteration_cost_online_rows_is_measured_at_the_pace_of_the_iteration() -> None:
    # The model says 10 + 3 * 5 = 25 ms, of which 10 + 2 * 5 = 20 without the offline row.
    shape = BatchShape(decode_rows=3, decode_kv_tokens=900)
    part = BatchShape(decode_rows=2, decode_kv_tokens=600)
    cost = step_impact(shape, part, 0.050, MODEL)
    assert (cost.alone_s, cost.decode_s) == (pytest.approx(0.040), pytest.approx(0.040))
    assert cost.longer_s == pytest.approx(0.010)


def test_an_online_prompt_alone_makes_no_row_late_and_an_offline_iteration_only_arrivals() -> None:
    prompt = BatchShape().with_chunk(100, 0)
    cost = step_impact(prompt.with_chunk(50, 0), prompt, 0.160, MODEL)
    assert (cost.decode_s, cost.longer_s) == (0.0, 0.0)
    assert cost.waits_s2 > 0.0
    offline = step_impact(BatchShape(decode_rows=3), BatchShape(), 0.025, MODEL)
    assert offline == StepImpact(seconds=0.025)


# ---------------------------------------------------------------- the decision


def decided(room: ImpactRoom, **state: Any) -> StepPlan:
    return decide(snapshot(impact=room, **state), MODEL, SETTINGS_OF_DECISIONS)


WIDE = ImpactRoom(waits_s2=1.0, longer_share=1.0, begins=True)


def test_without_room_nobody_is_admitted_and_offline_rows_give_way() -> None:
    rows = (row("x"), row("y"))
    plan = decided(ImpactRoom(), offline_rows=rows, candidates=(candidate("z", tokens=50),))
    assert set(plan.release) == {"x", "y"}
    assert plan.release_cause is ReleaseCause.IMPACT
    assert not plan.runs_prefill
    idle = decided(ImpactRoom(), candidates=(candidate("z", tokens=50),))
    assert (idle.reason, idle.chunk_tokens) == (Reason.NO_IMPACT, 0)
    beside = decided(ImpactRoom(waits_s2=1.0), online=online(2, due_in_s=9.0), offline_rows=rows)
    assert set(beside.release) == {"x", "y"}


def test_while_nobody_is_online_an_iteration_has_most_tokens_per_square_of_its_time() -> None:
    # tokens / (10 ms + 1 ms * tokens)^2 is greatest at 10 tokens; a chunk has 16 at least.
    plan = decided(WIDE, candidates=(candidate("z", tokens=500),))
    assert plan.offline_order == ("z",)
    assert 0 < plan.chunk_tokens <= 17


def test_an_online_prompt_has_its_iteration_to_itself() -> None:
    rows = (row("x"), row("y"))
    plan = decided(
        WIDE,
        waiting_online=(waiting("w", tokens=90),),
        offline_rows=rows,
        candidates=(candidate("z", tokens=50),),
    )
    assert (plan.online_order, plan.chunk_tokens) == (("w",), 90)
    assert plan.offline_order == ()
    assert set(plan.release) == {"x", "y"}


def test_a_half_done_offline_prompt_sits_an_online_one_out() -> None:
    chunk = ChunkInProgress(
        rid="c", service_class=ServiceClass.OFFLINE, remaining_tokens=300, prefix_tokens=200
    )
    plan = decided(WIDE, waiting_online=(waiting("w", tokens=90),), chunk=chunk)
    assert plan.chunk_action in (ChunkAction.PARK, ChunkAction.RELEASE)
    assert plan.chunk_tokens == 90


def test_beside_online_rows_an_iteration_keeps_to_the_share_though_the_slo_left_more() -> None:
    # Two online rows take 20 ms; half as much again leaves 10 ms, 10 prompt tokens; the chunk
    # of 20 that a whole share would leave is used.
    state = {"online": online(2, due_in_s=10.0), "candidates": (candidate("z", tokens=900),)}
    half = decided(ImpactRoom(waits_s2=1.0, longer_share=0.5, begins=True), **state)
    whole = decided(WIDE, **state)
    assert (half.chunk_tokens, whole.chunk_tokens) == (0, 20)
    assert decide(snapshot(**state), MODEL, SETTINGS_OF_DECISIONS).chunk_tokens > 20


def test_one_offline_row_may_run_though_it_costs_more_than_an_iteration_may() -> None:
    # A row costs 5 ms of 20: more than a tenth, less than four tenths.
    room = ImpactRoom(waits_s2=1.0, longer_share=0.1, begins=True)
    rows = (row("x", output=4), row("y", output=9))
    plan = decided(room, online=online(2, due_in_s=9.0), offline_rows=rows)
    assert len(plan.release) == 1
    alone = decided(room, online=online(2, due_in_s=9.0), offline_rows=rows[:1])
    assert alone.release == ()
    narrow = ImpactRoom(waits_s2=1.0, longer_share=0.05, begins=True)
    refused = decided(narrow, online=online(2, due_in_s=9.0), offline_rows=rows[:1])
    assert refused.release == ("x",)


def test_rows_that_decode_go_on_while_nothing_new_may_begin() -> None:
    room = ImpactRoom(waits_s2=1.0, longer_share=0.5)
    plan = decided(
        room,
        online=online(2, due_in_s=9.0),
        offline_rows=(row("x"),),
        candidates=(candidate("z", tokens=50),),
    )
    assert (plan.release, plan.chunk_tokens, plan.offline_order) == ((), 0, ())


def test_bounds_count_where_an_slo_is_the_limit_and_predictions_where_impact_is() -> None:
    wide = expected(MODEL, None)
    shape = BatchShape(decode_rows=2)
    assert wide.upper(shape) == pytest.approx(MODEL.predict(shape))
    state = snapshot(impact=WIDE, online=online(2, due_in_s=9.0))
    bound = WithinImpact.of(state, MODEL, SETTINGS_OF_DECISIONS)
    assert bound.longest_s == pytest.approx(2.0 * 0.020)


def test_idle_iterations_are_bounded_by_what_is_ever_saved() -> None:
    # sqrt(2 * 0.0001) = 14.1 ms, less than one row takes: it may run all the same, alone.
    state = snapshot(impact=ImpactRoom(waits_s2=0.0001, longer_share=0.1, begins=True))
    bound = WithinImpact(state, MODEL, SETTINGS_OF_DECISIONS)
    assert bound.longest_s == pytest.approx(1.05 * 0.015)
    wide = snapshot(impact=ImpactRoom(waits_s2=0.0004, longer_share=0.1, begins=True))
    bound = WithinImpact(wide, MODEL, SETTINGS_OF_DECISIONS)
    assert bound.longest_s == pytest.approx(math.sqrt(0.0008))


def test_online_prompts_run_whatever_offline_work_has_cost() -> None:
    plan = decided(ImpactRoom(), waiting_online=(waiting("w", tokens=90),))
    assert plan.online_order == ("w",)
    assert plan.chunk_tokens == 90


@given(
    fixed_ms=st.floats(1.0, 50.0), token_ms=st.floats(0.0, 5.0), most=st.integers(0, 3_000),
    rows=st.integers(0, 20),
)  # fmt: skip
def test_the_thriftiest_chunk_is_found_whatever_the_machine(
    fixed_ms: float, token_ms: float, most: int, rows: int
) -> None:
    weights = (fixed_ms / 1e3, 0.0, token_ms / 1e3, *(0.0,) * 10)
    model = replace(MODEL, weights_s=weights)
    decode = BatchShape(decode_rows=rows)
    iteration = Iteration(snapshot(impact=WIDE, chunk_cap_tokens=8192), model, decode)
    work = ((3_000, 0),)
    found = thriftiest_chunk(iteration, work, most)

    def worth(tokens: int) -> float:
        return (rows + tokens) / iteration.seconds(work, tokens) ** 2

    assert 0 <= found <= most
    if most:
        best = max(worth(tokens) for tokens in range(1, most + 1))
        assert worth(found) >= 0.99 * best
