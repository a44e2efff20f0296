"""The mean + k sigma baselines are what their names say."""

from __future__ import annotations

import math
import statistics

import pytest

from echo_sglang.errors import ConfigError
from echo_sglang.estimate.kv_demand import MAX_SAMPLES
from echo_sglang.estimate.mean_sigma import (
    MeanSigmaGrowthReserve,
    MeanSigmaLevelReserve,
    SlidingMoments,
)


def test_moments_are_those_of_the_last_values() -> None:
    moments = SlidingMoments(5)
    values = [10**9, 7, 10**9 + 1, 3, 3, 12, 0]
    for value in values:
        moments.add(value)
    last = values[-5:]
    expected = statistics.fmean(last) + 2.0 * statistics.pstdev(last)
    assert moments.mean_plus(2.0) == pytest.approx(expected)
    assert len(moments) == 5


def test_the_level_reserve_is_what_lacks_to_mean_plus_k_sigma() -> None:
    reserve = MeanSigmaLevelReserve(
        sigmas=2.0, window_s=102.4, floor_tokens=5, ceiling_tokens=9_000
    )
    for tick in range(1_500):  # 10 a second, one sample each: 100 and 300 in turn
        reserve.observe(tick / 10, 300 if tick % 2 else 100)
        if tick < 60:
            assert reserve.reserve_tokens(tick / 10) == 9_000
    reserve.observe(150.0, 250)
    assert reserve.reserve_tokens(150.0) == pytest.approx(200 + 2 * 100 - 250, abs=2)
    reserve.observe(150.1, 10_000)
    assert reserve.reserve_tokens(150.1) == 5


def test_the_growth_reserve_is_mean_plus_k_sigma_of_increments() -> None:
    reserve = MeanSigmaGrowthReserve(
        sigmas=3.0, horizon_s=0.5, window_s=102.4, floor_tokens=0, ceiling_tokens=9_000
    )
    assert reserve.reserve_tokens(0.0) == 9_000
    for tick in range(2_000):  # 0 for a second, 800 for a second: half the origins see 800
        reserve.observe(tick / 10, 800 * (tick // 10 % 2))
    share = 0.25  # the last half second of every other second
    spread = 800 * math.sqrt(share * (1.0 - share))
    assert reserve.reserve_tokens(200.0) == pytest.approx(800 * share + 3 * spread, rel=0.03)


@pytest.mark.parametrize("jump_s", [-1e6, 1e6, math.nan])
def test_clock_jumps_leave_the_level_where_it_was(jump_s: float) -> None:
    reserve = MeanSigmaLevelReserve(
        sigmas=1.0, window_s=102.4, floor_tokens=0, ceiling_tokens=9_000
    )
    for tick in range(MAX_SAMPLES + 10):
        reserve.observe(tick / 10, 500)
    reserve.observe(jump_s, 480)
    assert reserve.reserve_tokens(jump_s) == pytest.approx(0 if math.isnan(jump_s) else 20, abs=1)


@pytest.mark.parametrize("sigmas", [-1.0, math.nan, math.inf])
def test_sigmas_that_are_not_allowed_are_named(sigmas: float) -> None:
    with pytest.raises(ConfigError, match=f"sigmas {sigmas}: allowed is a finite number"):
        MeanSigmaLevelReserve(sigmas=sigmas, window_s=60.0, floor_tokens=0, ceiling_tokens=1)
    with pytest.raises(ConfigError, match=f"sigmas {sigmas}: allowed is a finite number"):
        MeanSigmaGrowthReserve(
            sigmas=sigmas, horizon_s=1.0, window_s=60.0, floor_tokens=0, ceiling_tokens=1
        )


@pytest.mark.parametrize("window_s", [0.0, math.nan, math.inf])
def test_a_window_that_is_not_allowed_is_named(window_s: float) -> None:
    with pytest.raises(ConfigError, match=f"window_s {window_s}: allowed is a finite number"):
        MeanSigmaLevelReserve(sigmas=2.0, window_s=window_s, floor_tokens=0, ceiling_tokens=1)
