"""The burst reserve follows what online KV did, within its limits, and bad settings are named."""

from __future__ import annotations

import math
from typing import Any

import pytest

from echo_sglang.errors import ConfigError
from echo_sglang.estimate.increments import HorizonIncrements, SlidingQuantile
from echo_sglang.estimate.kv_demand import FixedReserve, KvDemandForecast, WindowQuantileReserve

SETTINGS: dict[str, Any] = {
    "horizon_s": 2.0,
    "quantile": 0.9,
    "window_s": 102.4,  # an origin every 0.1 s
    "floor_tokens": 10,
    "ceiling_tokens": 5_000,
}


def quantile_reserve(**changes: Any) -> WindowQuantileReserve:
    return WindowQuantileReserve(**(SETTINGS | changes))


def feed_sawtooth(forecast: KvDemandForecast, *, start_s: float, seconds: int, height: int) -> None:
    """Online KV 0 in even seconds, `height` in odd ones, told 20 times a second."""
    for tick in range(20 * seconds):
        second = tick // 20
        forecast.observe(start_s + tick / 20, height * (second % 2))


def test_a_fixed_reserve_stays_what_it_was_told() -> None:
    reserve = FixedReserve(700)
    reserve.observe(1.0, 10**9)
    assert reserve.reserve_tokens(2.0) == 700


def test_the_ceiling_is_kept_until_four_horizons_were_seen() -> None:
    reserve = quantile_reserve()
    for tick in range(1_000):
        reserve.observe(tick / 100, 0)  # 9.99 s: origins up to 7.9 s are known, 80 of them
        assert reserve.reserve_tokens(tick / 100) == (5_000 if tick < 991 else 10)


def test_growth_that_returns_is_reserved_and_a_quiet_window_forgets_it() -> None:
    reserve = quantile_reserve()
    feed_sawtooth(reserve, start_s=0.0, seconds=60, height=900)
    assert reserve.reserve_tokens(60.0) == 900  # seen from every even second, half of the time
    for tick in range(20 * 110):
        reserve.observe(60.0 + tick / 20, 0)
    assert reserve.reserve_tokens(170.0) == 10


@pytest.mark.parametrize(("quantile", "kept"), [(0.9, 10), (0.99, 900)])
def test_an_increment_rarer_than_the_quantile_is_not_reserved(quantile: float, kept: int) -> None:
    reserve = quantile_reserve(quantile=quantile)
    for tick in range(5_000):  # one tick of 100 s holds 900 tokens: seen from 2 s of origins
        reserve.observe(tick / 50, 900 if tick == 2_500 else 0)
    assert reserve.reserve_tokens(100.0) == kept


@pytest.mark.parametrize(("height", "kept"), [(3, 10), (40_000, 5_000)])
def test_the_reserve_stays_between_floor_and_ceiling(height: int, kept: int) -> None:
    reserve = quantile_reserve()
    feed_sawtooth(reserve, start_s=0.0, seconds=60, height=height)
    assert reserve.reserve_tokens(60.0) == kept


def test_a_clock_that_jumps_back_or_far_ahead_changes_nothing_learned() -> None:
    reserve = quantile_reserve()
    feed_sawtooth(reserve, start_s=10_000.0, seconds=60, height=900)
    feed_sawtooth(reserve, start_s=3.0, seconds=20, height=900)
    assert reserve.reserve_tokens(23.0) == 900
    feed_sawtooth(reserve, start_s=9e9, seconds=20, height=900)
    assert reserve.reserve_tokens(9e9) == 900


@pytest.mark.parametrize("now_s", [math.nan, math.inf, -math.inf])
def test_a_time_that_is_no_number_is_ignored(now_s: float) -> None:
    increments = HorizonIncrements(horizon_s=1.0, spacing_s=0.5)
    increments.observe(0.0, 5)
    assert increments.observe(now_s, 10**6) == []
    assert increments.observe(1.25, 7) == [0]  # of the origin at 0 s: 5 held over (0, 1]


def test_a_jump_after_a_pause_is_seen_by_one_horizon_of_origins() -> None:
    increments = HorizonIncrements(horizon_s=2.0, spacing_s=0.5)
    increments.observe(0.0, 100)
    # An hour counts as 2.5 s: origins 0.0, ..., 2.0 open; that of 0.0 closes without the jump.
    assert increments.observe(3600.0, 400) == [0]
    assert increments.observe(3602.25, 0) == [300, 300, 300, 300, 0]


def test_a_thousand_observations_a_second_leave_no_more_behind_than_ten() -> None:
    sizes = []
    for rate in (10, 1_000):
        increments = HorizonIncrements(horizon_s=5.0, spacing_s=0.5)
        for tick in range(20 * rate):
            increments.observe(tick / rate, tick * 37 % 1_009)
        sizes.append(len(increments._origins) + len(increments._peaks))
    assert max(sizes) <= 2 * 12


def test_the_quantile_of_few_values_is_their_largest() -> None:
    seen = SlidingQuantile(4)
    for value in (5, 1, 9, 3, 2):
        seen.add(value)
    assert len(seen) == 4  # 5 went
    assert [seen.quantile(share) for share in (0.01, 0.2, 0.4, 0.6, 0.8, 0.95)] == [
        1, 1, 2, 3, 9, 9,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon_s": 0.0}, "horizon_s 0.0: allowed is above 0"),
        ({"horizon_s": 200.0}, "at most the window of 102.4 s"),
        ({"horizon_s": math.nan}, "horizon_s nan"),
        ({"window_s": math.inf}, "window_s inf"),
        ({"window_s": -1.0}, "window_s -1.0"),
        ({"quantile": 1.0}, "quantile 1.0: allowed is above 0 and at most 0.999"),
        ({"quantile": math.nan}, "quantile nan"),
        ({"floor_tokens": -1}, "floor_tokens -1: allowed is 0 or more"),
        ({"ceiling_tokens": 9}, "ceiling_tokens 9: allowed is the floor of 10 tokens or more"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        quantile_reserve(**changes)
    assert message in str(caught.value)


def test_a_negative_fixed_reserve_is_refused() -> None:
    with pytest.raises(ConfigError, match="reserve_tokens -5: allowed is 0 or more"):
        FixedReserve(-5)
