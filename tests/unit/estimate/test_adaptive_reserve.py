"""The adaptive reserve knows its rows, keeps its violation rate and asks seldom."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from echo_sglang.errors import ConfigError
from echo_sglang.estimate.adaptive_reserve import (
    LEVEL_RANGE,
    SAMPLES,
    AdaptiveReserve,
    History,
    expected_change,
)
from echo_sglang.estimate.kv_demand import OnlineRow, RunningOnline
from echo_sglang.estimate.output_length import SurvivalTable

STEP_S = 0.05
SETTINGS: dict[str, Any] = {
    "horizon_s": 2.0,
    "window_s": 200.0,
    "floor_tokens": 0,
    "ceiling_tokens": 50_000,
}


def adaptive(**changes: Any) -> AdaptiveReserve:
    return AdaptiveReserve(**({"lengths": SurvivalTable()} | SETTINGS | changes))


class Server:
    """Online requests that come at random, hold 400 tokens and one more a step, and go."""

    def __init__(self, reserve: AdaptiveReserve, lengths: SurvivalTable, seed: int) -> None:
        self.reserve = reserve
        self.lengths = lengths
        self.rng = random.Random(seed)
        self.running: list[list[int]] = []
        self.kv_tokens: list[int] = []
        self.reserved: list[int] = []
        self.asked = 0

    def run(self, steps: int, *, per_s: float, mean_tokens: float) -> None:
        for _ in range(steps):
            if self.rng.random() < per_s * STEP_S:
                self.running.append([0, 1 + int(self.rng.expovariate(1.0 / mean_tokens))])
            for row in self.running:
                row[0] += 1
            for produced, length in self.running:
                if produced == length:
                    self.lengths.observe(length)
            self.running = [row for row in self.running if row[0] < row[1]]
            now_s = len(self.kv_tokens) * STEP_S
            self.kv_tokens.append(sum(400 + row[0] for row in self.running))
            self.reserve.observe(now_s, self.kv_tokens[-1], self.rows)
            self.reserved.append(self.reserve.reserve_tokens(now_s))

    def rows(self) -> RunningOnline:
        self.asked += 1
        return RunningOnline(
            STEP_S, [OnlineRow(400 + row[0], row[0], 4_096) for row in self.running]
        )

    def violations(self, first: int, last: int, horizon_s: float = 2.0) -> float:
        """Share of steps from `first` to `last` whose reserve was exceeded within the horizon."""
        ahead = round(horizon_s / STEP_S)
        exceeded = [
            max(self.kv_tokens[step + 1 : step + 1 + ahead]) - self.kv_tokens[step]
            > self.reserved[step]
            for step in range(first, min(last, len(self.kv_tokens) - ahead))
        ]
        return sum(exceeded) / len(exceeded)


def server(seed: int, **changes: Any) -> Server:
    lengths = SurvivalTable()
    return Server(adaptive(lengths=lengths, **changes), lengths, seed)


def test_the_ceiling_is_kept_until_enough_was_seen() -> None:
    busy = server(seed=1)
    busy.run(3_000, per_s=2.0, mean_tokens=60)
    first_own = next(i for i, tokens in enumerate(busy.reserved) if tokens < 50_000)
    assert 8.0 <= first_own * STEP_S <= 16.0  # four horizons of 2 s, samples a little apart
    assert all(tokens < 50_000 for tokens in busy.reserved[first_own:])


def test_the_violation_rate_is_the_wanted_one_also_after_the_load_changed() -> None:
    busy = server(seed=3, violation_rate=0.1)
    busy.run(10_000, per_s=2.0, mean_tokens=60)
    busy.run(10_000, per_s=4.0, mean_tokens=90)
    assert busy.violations(1_000, 10_000) == pytest.approx(0.1, abs=0.025)
    assert busy.violations(11_000, 20_000) == pytest.approx(0.1, abs=0.025)


def test_rows_are_asked_for_no_more_than_ten_times_a_second() -> None:
    busy = server(seed=2)
    busy.run(2_000, per_s=2.0, mean_tokens=60)
    assert busy.asked <= 10 * 2_000 * STEP_S + 1


def test_asking_for_the_reserve_changes_nothing() -> None:
    asked, left_alone = server(seed=8), server(seed=8)
    for each in (asked, left_alone):
        for _ in range(40):
            each.run(50, per_s=2.0, mean_tokens=60)
            if each is asked:
                assert len({each.reserve.reserve_tokens(1e6 * i) for i in range(5)}) == 1
    assert asked.reserved == left_alone.reserved


def test_rows_that_are_about_to_end_are_expected_to_free_what_they_hold() -> None:
    lengths = SurvivalTable()
    for _ in range(2_000):
        lengths.observe(16)
    ending = RunningOnline(0.1, [OnlineRow(1_010, 10, 999), OnlineRow(2_010, 10, 999)])
    assert expected_change(ending, lengths, 1.0) == pytest.approx(-3_020, rel=0.01)
    staying = RunningOnline(0.1, [OnlineRow(1_004, 4, 999), OnlineRow(2_004, 4, 999)])
    assert expected_change(staying, lengths, 1.0) == pytest.approx(2 * 10, abs=5)


def test_a_row_never_outlives_what_it_may_produce() -> None:
    lengths = SurvivalTable()
    for _ in range(500):
        lengths.observe(5_000)
    running = RunningOnline(0.1, [OnlineRow(300, 100, 110)])
    assert expected_change(running, lengths, 1.0) == -300.0
    assert expected_change(running, lengths, 0.9) == pytest.approx(9.0, abs=0.5)


def test_an_absurdly_short_step_ends_all_rows() -> None:
    running = RunningOnline(5e-324, [OnlineRow(300, 100, 4_096)])
    assert expected_change(running, SurvivalTable(), 5.0) == -300.0


@pytest.mark.parametrize("step_s", [0.0, -1.0, math.nan])
def test_without_a_known_pace_nothing_is_expected_of_rows(step_s: float) -> None:
    running = RunningOnline(step_s, [OnlineRow(300, 100, 110)])
    assert expected_change(running, SurvivalTable(), 5.0) == 0.0
    assert expected_change(RunningOnline(0.1), SurvivalTable(), 5.0) == 0.0


def test_the_quantile_is_taken_among_moments_like_now() -> None:
    history = History()
    for index in range(400):  # falls of 1,000 are followed by up to 99, rises by 500 to 599
        history.add(-1_000.0, index % 100)
        history.add(1_000.0, 500 + index % 100)
    assert history.quantile_near(-1_000.0, 0.95) == pytest.approx(94, abs=1)
    assert history.quantile_near(1_000.0, 0.95) == pytest.approx(594, abs=1)


def test_only_the_last_samples_are_kept() -> None:
    history = History()
    for _ in range(100):
        history.add(0.0, 10**6)
    for _ in range(SAMPLES):
        history.add(0.0, 3)
    assert len(history) == SAMPLES
    assert history.quantile_near(0.0, 0.999) == 3.0


def test_the_reserve_stays_between_floor_and_ceiling() -> None:
    quiet = server(seed=4, floor_tokens=300, ceiling_tokens=600)
    quiet.run(2_000, per_s=2.0, mean_tokens=30)
    quiet.run(6_000, per_s=0.0, mean_tokens=30)
    assert min(quiet.reserved) == quiet.reserved[-1] == 300
    assert max(quiet.reserved[1_000:2_000]) == 600


def test_the_level_stays_in_its_range_whatever_happens() -> None:
    def play(tokens_at: Callable[[int], int]) -> AdaptiveReserve:
        reserve = adaptive(violation_rate=0.02)
        for tick in range(12_000):
            reserve.observe(tick / 10, tokens_at(tick))
        return reserve

    assert play(lambda tick: 100).level == pytest.approx(0.02 * LEVEL_RANGE)
    explosive = play(lambda tick: tick * tick)
    assert explosive.level == pytest.approx(0.02 / LEVEL_RANGE)
    assert explosive.reserve_tokens(1_200.0) == 50_000


@pytest.mark.parametrize("jump_s", [-1e7, 1e7, math.nan, math.inf])
def test_a_clock_that_jumps_is_survived(jump_s: float) -> None:
    busy = server(seed=6)
    busy.run(4_000, per_s=2.0, mean_tokens=60)
    before = busy.reserve.reserve_tokens(200.0)
    busy.reserve.observe(jump_s, busy.kv_tokens[-1], busy.rows)
    after = busy.reserve.reserve_tokens(jump_s)
    assert after == pytest.approx(before, rel=0.5)
    assert 0 < after < 50_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"violation_rate": 0.0}, "violation_rate 0.0: allowed is 0.001 to 0.5"),
        ({"violation_rate": math.nan}, "violation_rate nan"),
        ({"horizon_s": 0.0}, "horizon_s 0.0: allowed is above 0"),
        ({"window_s": math.nan}, "window_s nan"),
        ({"floor_tokens": -1}, "floor_tokens -1: allowed is 0 or more"),
        ({"floor_tokens": 60_000}, "ceiling_tokens 50000: allowed is the floor of 60000"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        adaptive(**changes)
    assert message in str(caught.value)
