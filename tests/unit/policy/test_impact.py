"""Offline work stays within the impact that was allowed, and uses what was."""

from __future__ import annotations

import math
from typing import Any

import pytest

from echo_sglang.domain.plan import Reason, ReleaseCause, StepPlan
from echo_sglang.domain.snapshot import ImpactRoom, OfflineRows
from echo_sglang.policy.coscheduler import decide
from echo_sglang.policy.impact import ImpactAccount, ImpactSettings, longest_step
from echo_sglang.policy.preemption import decode_shape

from .builders import MODEL, candidate, online, row, snapshot, waiting
from .builders import SETTINGS as SETTINGS_OF_DECISIONS

SETTINGS = ImpactSettings(ttft=0.05, tpot=0.02)


def test_before_anything_was_allowed_there_is_no_room() -> None:
    assert ImpactAccount(SETTINGS).room(0.0) == ImpactRoom()


def test_iterations_back_to_back_delay_an_arrival_by_half_their_length() -> None:
    account = ImpactAccount(SETTINGS)
    account.room(0.0)
    for i in range(1, 5_001):
        account.step(0.02 * i, 0.02, 0.0)
    assert account.expected_wait_s == pytest.approx(0.01, rel=0.01)


def test_what_online_work_takes_itself_is_no_impact() -> None:
    account = ImpactAccount(SETTINGS)
    account.room(0.0)
    for i in range(1, 2_001):
        account.step(0.015 * i, 0.015, 0.015)
    assert account.expected_wait_s == 0.0
    assert account.longer_share == 0.0
    assert account.room(30.0).waits_s2 > 0.0


def test_the_room_of_a_first_token_is_its_share_of_the_time_alone() -> None:
    account = ImpactAccount(SETTINGS)
    account.room(0.0)
    for _ in range(20):
        account.first_token(0.08)
    # After 1,000 s the window holds its 30 s: 0.8 * 5 % of 80 ms over 30 s, and twice the band.
    allowed_s2 = 0.8 * 0.05 * 0.08 * 30.0
    assert account.room(1_000.0).waits_s2 == pytest.approx(1.4 * allowed_s2, rel=1e-6)


@pytest.mark.parametrize("step_s", [0.005, 0.02, 0.1])
def test_idle_moments_are_used_until_the_mean_wait_is_what_was_allowed(step_s: float) -> None:
    account = ImpactAccount(SETTINGS)
    now_s, busy_s, openings, was_open = 0.0, 0.0, 0, False
    account.room(now_s)
    account.first_token(0.08)
    while now_s < 600.0:
        runs = longest_step(account.room(now_s), 0.0) >= step_s
        openings += runs and not was_open
        was_open = runs
        now_s += step_s
        if runs:
            busy_s += step_s
            account.step(now_s, step_s, 0.0)
    # Mean wait = share of time busy * half a step; at most all the time.
    allowed_s = 0.8 * 0.05 * 0.08
    wait_s = busy_s / now_s * step_s / 2.0
    assert wait_s == pytest.approx(min(allowed_s, step_s / 2.0), rel=0.15)
    # In stretches, so that rows are not sent away and called back all the time.
    assert openings <= 600.0 / 3.0


def test_beside_online_rows_an_iteration_may_be_a_little_longer_until_the_share_is_used() -> None:
    account = ImpactAccount(SETTINGS)
    now_s, alone_s, longer_s = 0.0, 0.0, 0.0
    account.room(now_s)
    for _ in range(40_000):
        step_s = longest_step(account.room(now_s), 0.015)
        assert step_s <= 0.015 * (1.0 + 2.0 * 0.02)
        now_s += step_s
        account.step(now_s, step_s, 0.015)
        alone_s += 0.015
        longer_s += step_s - 0.015
    assert longer_s / alone_s == pytest.approx(0.8 * 0.02, rel=0.1)
    assert account.longer_share == pytest.approx(0.8 * 0.02, rel=0.3)


def test_one_iteration_may_not_spend_more_waiting_than_there_is() -> None:
    room = ImpactRoom(waits_s2=0.0002, longer_share=10.0)
    assert longest_step(room, 0.0) == pytest.approx(0.02)
    assert longest_step(room, 0.015) == pytest.approx(math.sqrt(0.015**2 + 0.0004))
    assert longest_step(ImpactRoom(), 0.015) == 0.015
    assert longest_step(ImpactRoom(), 0.0) == 0.0


def test_a_clock_that_stands_still_or_goes_back_allows_nothing_more() -> None:
    account = ImpactAccount(SETTINGS)
    account.room(100.0)
    before = account.room(200.0)
    assert account.room(150.0) == before


def decided(room: ImpactRoom, **state: Any) -> StepPlan:
    return decide(snapshot(impact=room, **state), MODEL, SETTINGS_OF_DECISIONS)


WIDE = ImpactRoom(waits_s2=1.0, longer_share=1.0)


def test_without_room_nobody_is_admitted_and_offline_rows_give_way() -> None:
    rows = (row("x"), row("y"))
    plan = decided(ImpactRoom(), offline_rows=rows, candidates=(candidate("z", tokens=50),))
    assert set(plan.release) == {"x", "y"}
    assert plan.release_cause is ReleaseCause.IMPACT
    assert not plan.runs_prefill
    idle = decided(ImpactRoom(), candidates=(candidate("z", tokens=50),))
    assert (idle.reason, idle.chunk_tokens) == (Reason.NO_IMPACT, 0)


def test_with_room_offline_work_runs_while_nobody_is_online() -> None:
    plan = decided(WIDE, candidates=(candidate("z", tokens=50),))
    assert plan.offline_order == ("z",)
    assert plan.offline_tokens > 0


def test_beside_online_rows_an_iteration_keeps_to_the_share_though_the_slo_left_more() -> None:
    state = {
        "online": online(2, due_in_s=10.0),
        "candidates": (candidate("z", tokens=900),),
    }
    by_slo = decide(snapshot(**state), MODEL, SETTINGS_OF_DECISIONS)
    alone_s = MODEL.upper(decode_shape(snapshot(**state), OfflineRows()))
    plan = decided(ImpactRoom(waits_s2=1.0, longer_share=0.5), **state)
    assert by_slo.predicted_s > 1.5 * alone_s
    assert plan.predicted_s <= 1.5 * alone_s


def test_online_prompts_run_whatever_offline_work_has_cost() -> None:
    plan = decided(ImpactRoom(), waiting_online=(waiting("w", tokens=90),))
    assert plan.online_order == ("w",)
    assert plan.chunk_tokens == 90
