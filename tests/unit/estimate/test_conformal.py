"""Bounds cover what they promise, and go on doing so when the server changes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from echo_sglang.estimate.conformal import (
    MAX_LOG_FACTOR,
    MAX_STEP,
    AdaptiveFactor,
    split_log_factor,
)


def test_the_split_factor_is_the_conformal_order_statistic() -> None:
    # ceil(20 * 0.9) = 18th of 19.
    assert split_log_factor(np.arange(1.0, 20.0) / 100.0, 0.9) == pytest.approx(0.18)


def test_too_few_errors_for_the_coverage_take_the_largest() -> None:
    assert split_log_factor(np.array([0.1, 0.3]), 0.95) == pytest.approx(0.3)


def test_a_model_that_predicts_too_long_gets_no_factor_below_one() -> None:
    assert split_log_factor(np.full(50, -0.2), 0.95) == 0.0


def covered(noise: np.ndarray, factor: AdaptiveFactor, *, adapt: bool) -> float:
    hits = []
    for log_ratio in noise:
        hits.append(log_ratio <= factor.log_factor)
        if adapt:
            factor = factor.following(float(log_ratio))
    return float(np.mean(hits))


@pytest.mark.parametrize("coverage", [0.9, 0.95])
@pytest.mark.parametrize(
    "drift",
    [
        np.linspace(0.0, 0.3, 4_000),  # ever slower
        np.repeat([0.0, 0.2, 0.05, 0.15], 1_000),  # jumps
        0.1 - 0.1 * np.cos(np.arange(4_000) / 150.0),  # comes and goes
    ],
    ids=["ramp", "jumps", "waves"],
)
def test_under_drift_the_adaptive_bound_holds_where_the_fixed_one_does_not(
    drift: np.ndarray, coverage: float
) -> None:
    rng = np.random.default_rng(3)
    calm = 0.04 * rng.standard_normal(500)
    fixed = AdaptiveFactor(coverage=coverage, log_factor=split_log_factor(calm, coverage))
    noise = drift + 0.04 * rng.standard_normal(len(drift))
    assert covered(noise, fixed, adapt=False) < coverage - 0.1
    assert covered(noise, fixed, adapt=True) == pytest.approx(coverage, abs=0.015)


def test_without_drift_the_adaptive_bound_is_about_as_tight_as_the_right_one() -> None:
    rng = np.random.default_rng(4)
    factor = AdaptiveFactor(coverage=0.95)
    seen = []
    for log_ratio in 0.04 * rng.standard_normal(6_000):
        factor = factor.following(float(log_ratio))
        seen.append(factor.log_factor)
    # The 95 % quantile of a normal error is 1.645 deviations: 0.066.
    assert np.mean(seen[1_000:]) == pytest.approx(0.066, abs=0.02)


def test_one_wild_iteration_moves_the_factor_by_at_most_a_step() -> None:
    factor = AdaptiveFactor(coverage=0.95, log_factor=0.1)
    assert factor.following(math.log(50.0)).log_factor <= 0.1 + MAX_STEP


def test_the_factor_stays_between_one_and_its_largest() -> None:
    factor = AdaptiveFactor(coverage=0.95)
    for _ in range(2_000):
        factor = factor.following(9.0)
    assert factor.log_factor == MAX_LOG_FACTOR
    for _ in range(60_000):
        factor = factor.following(-9.0)
    assert factor.log_factor == 0.0
