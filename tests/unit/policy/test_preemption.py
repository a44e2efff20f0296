"""Who gives way first, and how long those who did stay away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from echo_sglang.policy.preemption import (
    RESULT_STEPS,
    Shortage,
    asks_for_memory,
    rest_steps,
    rows_for_reserve,
    rows_for_shortage,
    rows_for_time,
)

from .builders import MODEL, memory, online, row, snapshot, waiting


def test_a_row_that_gave_way_rests_twice_as_long_every_time() -> None:
    assert [rest_steps(times, 4) for times in (1, 2, 3, 4)] == [4, 8, 16, 32]
    assert rest_steps(7, 4) == rest_steps(70, 4) == 256


def test_nobody_comes_back_before_a_result_in_flight_was_looked_at() -> None:
    assert rest_steps(1, 0) == RESULT_STEPS


@pytest.mark.parametrize("min_parked_steps", [2, 4, 16])
def test_a_request_gives_way_a_bounded_number_of_times(min_parked_steps: int) -> None:
    # The worst case: released in the very iteration in which it comes back, for 1,000 steps.
    step = preemptions = 0
    while step < 1_000:
        preemptions += 1
        step += rest_steps(preemptions, min_parked_steps)
    # without doubling 1,000 / min_parked_steps; with it 7 doublings, then every 64th of that
    assert preemptions <= 7 + 1_000 / (64 * min_parked_steps)


def test_the_least_urgent_the_least_disturbed_and_the_youngest_give_way_first() -> None:
    rows = (
        replace(row("young", output=1), preemptions=3),
        replace(row("calm", output=9), preemptions=0),
        replace(row("urgent", output=0), urgency=2.0),
        replace(row("calm and younger", output=5), preemptions=0),
    )
    state = snapshot(online=online(1, due_in_s=1.0), offline_rows=rows)
    # 10 ms + 5 ms a row: 5 rows take 35 ms
    going = [
        [r.rid for r in rows_for_time(state.offline_rows, state, MODEL, budget_s)]
        for budget_s in (0.0301, 0.0251, 0.0201, 0.0151)
    ]
    assert going[0] == ["calm and younger"]
    assert going[1] == ["calm and younger", "calm"]
    assert going[2] == ["calm and younger", "calm", "young"]
    assert going[3] == ["calm and younger", "calm", "young", "urgent"]


def test_what_rows_hold_alone_is_asked_only_when_somebody_must_give_kv_back() -> None:
    roomy = replace(memory(), available_tokens=5_000, reserve_tokens=500)
    online_prompt = (waiting("w", tokens=400),)
    assert not asks_for_memory((), roomy, 4, 1)
    assert not asks_for_memory(online_prompt, roomy, 4, 1)
    assert asks_for_memory(online_prompt, roomy, 0, 1), "no slot"
    assert asks_for_memory(online_prompt, replace(roomy, growth_tokens=4_900), 4, 1), "no KV"
    assert asks_for_memory((), replace(roomy, reserve_tokens=5_001), 4, 1), "no reserve"


def test_who_gives_kv_back_is_who_costs_least_urgency_for_it() -> None:
    # 400 private tokens each at urgency 4 count as 100; those of the calm row as 200
    urgent = replace(row("urgent"), private_tokens=400, remaining_tokens=0, urgency=4.0)
    calm = replace(row("calm"), private_tokens=200, remaining_tokens=0)
    rows = (urgent, calm, replace(calm, rid="third"))
    assert [r.rid for r in rows_for_shortage(rows, Shortage(tokens=150))] == ["calm"]
    lacking = replace(memory(available=350), reserve_tokens=500)
    assert [r.rid for r in rows_for_reserve(rows, lacking)] == ["calm"]
    even = (replace(urgent, urgency=1.0), calm)
    assert [r.rid for r in rows_for_shortage(even, Shortage(tokens=150))] == ["urgent"]
