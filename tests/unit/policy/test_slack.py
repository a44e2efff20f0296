"""Deadlines, slack and bursts, in seconds a reader can add up."""

from __future__ import annotations

import math

import pytest

from echo_sglang.policy.arrivals import BurstEstimate, OnlineShare
from echo_sglang.policy.attainment import AttainmentWindow, OnlineProgress
from echo_sglang.policy.slack import (
    SloSettings,
    arrival_guard,
    decode_budget,
    next_token_deadline,
)

from .builders import online, snapshot

SLO = SloSettings(ttft_slo_s=2.0, tpot_slo_s=0.3, ttft_margin=0.9, tpot_margin=0.9)


def progress(arrival_s: float = 10.0) -> OnlineProgress:
    return OnlineProgress(arrival_s=arrival_s, ttft_slo_s=2.0, tpot_slo_s=0.3)


def test_the_first_token_is_due_within_the_planned_share_of_the_ttft_slo() -> None:
    assert progress().next_deadline_s(SLO) == pytest.approx(11.8)


def test_a_request_that_ran_ahead_owns_slack() -> None:
    ahead = progress()
    ahead.note(1, 11.0)
    ahead.note(4, 11.2)  # three more tokens within 0.2 s
    # the fifth is due at 11.0 + 4 * 0.27
    assert ahead.next_deadline_s(SLO) == pytest.approx(12.08)
    assert ahead.decode_limits_s(SLO)[1] == pytest.approx(12.1)


def test_the_token_after_the_one_in_flight_is_due_one_tpot_later() -> None:
    running = progress()
    running.note(1, 11.0)
    # noted: the first. The second is on its way until 11.2; the third is due 2 * 0.27 after it.
    assert running.decode_limits_s(SLO)[0] == pytest.approx(11.27)
    assert running.decode_limits_s(SLO, 11.2)[0] == pytest.approx(11.54)
    # no gap may exceed 3 * 0.3 s
    assert running.decode_limits_s(SLO)[1] == pytest.approx(11.9)
    assert running.decode_limits_s(SLO, 11.2)[1] == pytest.approx(12.1)


def test_a_long_answer_keeps_back_a_fixed_time_that_grows_with_online_prefill() -> None:
    # 0.03 s of each 0.3 s are kept back, up to 0.75 * 0.3 s: after 7.5 tokens
    assert next_token_deadline(0.0, 7, 0.3, SLO) == pytest.approx(7 * 0.27)
    assert next_token_deadline(0.0, 8, 0.3, SLO) == pytest.approx(7.25 * 0.3)
    assert next_token_deadline(0.0, 99, 0.3, SLO) == pytest.approx(98.25 * 0.3)
    # up to 0.75 + 0.5 * 2 tokens' time while half of the time goes to online prompts
    assert next_token_deadline(0.0, 7, 0.3, SLO, 0.5) == pytest.approx(7 * 0.27)
    assert next_token_deadline(0.0, 99, 0.3, SLO, 0.5) == pytest.approx(97.25 * 0.3)


def test_deadlines_of_running_rows_follow_the_share_of_online_prefill() -> None:
    running = progress()
    running.note(1, 11.0)
    running.note(100, 40.0)
    calm, busy = running.decode_limits_s(SLO), running.decode_limits_s(SLO, None, 1.0)
    assert calm[0] - busy[0] == pytest.approx(SLO.kept_for_bursts * 0.3)
    flying = running.decode_limits_s(SLO, 40.2, 1.0)
    assert running.decode_limits_s(SLO, 40.2)[0] - flying[0] == pytest.approx(0.6)
    assert calm[1] == busy[1] == pytest.approx(40.9)  # the largest gap stays what it is


def test_a_first_token_in_flight_is_counted_from_when_it_comes() -> None:
    fresh = progress()
    assert fresh.decode_limits_s(SLO, 10.4)[0] == pytest.approx(10.67)
    assert fresh.decode_limits_s(SLO)[1] == math.inf


def test_every_request_is_held_to_its_own_slo() -> None:
    strict = OnlineProgress(arrival_s=10.0, ttft_slo_s=1.0, tpot_slo_s=0.1)
    assert strict.next_deadline_s(SLO) == pytest.approx(10.9)
    strict.note(1, 10.8)
    assert strict.next_deadline_s(SLO) == pytest.approx(10.89)
    strict.note(2, 10.95)
    assert not strict.attained
    lax = progress()
    lax.note(1, 10.8)
    lax.note(2, 10.95)
    assert lax.attained


def test_attainment_needs_both_slos() -> None:
    met, slow_first, slow_rest = progress(), progress(), progress()
    met.note(1, 11.9)
    met.note(11, 14.9)  # 0.3 s a token
    slow_first.note(1, 12.1)
    slow_rest.note(1, 11.0)
    slow_rest.note(11, 14.1)
    assert [p.attained for p in (met, slow_first, slow_rest)] == [True, False, False]


def test_the_window_forgets_requests_older_than_a_minute() -> None:
    window = AttainmentWindow(window_s=60.0)
    good, bad = progress(), progress()
    good.note(1, 11.0)
    bad.note(1, 19.0)
    window.finished(bad, 20.0)
    window.finished(good, 50.0)
    assert window.counts(60.0) == (2, 1)
    assert window.counts(90.0) == (1, 1)
    assert window.counts(200.0) == (0, 0)


def test_without_online_rows_decoding_has_no_deadline() -> None:
    assert decode_budget(snapshot()) == math.inf


def test_the_largest_gap_binds_even_a_row_with_much_slack() -> None:
    assert decode_budget(snapshot(online=online(1, due_in_s=5.0))) == pytest.approx(0.9)


def test_the_arrival_guard_leaves_room_for_a_burst_but_never_forbids_everything() -> None:
    assert arrival_guard(0.0, SLO) == pytest.approx(0.5)  # a quarter of 2 s
    assert arrival_guard(1.4, SLO) == pytest.approx(0.4)  # 0.9 * 2 s - 1.4 s
    assert arrival_guard(9.0, SLO) == pytest.approx(0.3)


def test_bursts_are_learned_from_what_arrives_together() -> None:
    bursts = BurstEstimate(quantile=0.9)
    assert bursts.tokens == 0
    for second in range(10):
        for _ in range(5):
            bursts.observe(30.0 * second, 100)
    assert bursts.tokens == 500
    calm = BurstEstimate(quantile=0.9)
    for second in range(20):
        calm.observe(float(second), 100)
    assert calm.tokens == 100


def test_the_share_of_online_prefill_is_an_average_over_time_that_forgets() -> None:
    online = OnlineShare(memory_s=10.0)
    assert online.share == 0.0
    online.decided(0.0, 100, 0)
    online.decided(100.0, 100, 75)  # online prompts only, for long
    assert online.share == pytest.approx(1.0, abs=1e-4)
    online.decided(110.0, 0, 0)  # then a quarter of them, for one memory
    assert online.share == pytest.approx(0.25 + 0.75 * math.exp(-1.0), abs=1e-4)
    online.decided(1_000.0, 100, 0)  # no prefill at all counts as none of theirs
    assert online.share == pytest.approx(0.0, abs=1e-4)
