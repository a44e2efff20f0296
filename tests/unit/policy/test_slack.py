"""Deadlines, slack and bursts, in seconds a reader can add up."""

from __future__ import annotations

import math

import pytest

from echo_sglang.policy.arrivals import BurstEstimate
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


def test_a_long_answer_keeps_back_no_more_than_one_largest_gap() -> None:
    # 0.03 s of each 0.3 s are kept back, until that is the largest gap: 3 * 0.3 s, at token 30
    assert next_token_deadline(0.0, 20, 0.3, SLO) == pytest.approx(20 * 0.27)
    assert next_token_deadline(0.0, 30, 0.3, SLO) == pytest.approx(30 * 0.27)
    assert next_token_deadline(0.0, 31, 0.3, SLO) == pytest.approx(30 * 0.27 + 0.3)
    # A row that is at its deadline may still meet the largest gap and be in time.
    late_s = next_token_deadline(0.0, 1_000, 0.3, SLO) + SLO.max_gap_factor * 0.3
    assert late_s <= 1_000 * 0.3 + 1e-9


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
