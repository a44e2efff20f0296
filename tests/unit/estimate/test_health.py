"""Trust ends with drift or without usable times, and returns with good predictions."""

from __future__ import annotations

import math

import pytest

from echo_sglang.domain.batch import Regime
from echo_sglang.estimate.health import Health, HealthSettings

SETTINGS = HealthSettings(recent=8, max_missing=3)


def compare(health: Health, ratio: float, times: int, regime: Regime = Regime.DECODE) -> list:
    return [health.compared(regime, 1.0, 1.1, ratio) for _ in range(times)]


@pytest.mark.parametrize("ratio", [3.0, 1 / 3])
def test_a_median_beyond_the_bound_ends_trust_and_says_so_once(ratio: float) -> None:
    health = Health(SETTINGS)
    told = compare(health, ratio, 6)
    # Half of `recent` is needed: the fourth comparison ends trust.
    assert told[:3] == [None] * 3
    assert told[3] == pytest.approx(ratio)
    assert told[4:] == [None, None]
    assert health.safe_mode is not None
    assert "decode" in health.safe_mode
    assert f"{ratio:.2f}" in health.safe_mode


def test_a_few_outliers_do_not_end_trust() -> None:
    health = Health(SETTINGS)
    compare(health, 1.0, 5)
    compare(health, 9.0, 3)
    assert health.safe_mode is None


def test_trust_returns_with_good_predictions_and_not_before() -> None:
    health = Health(SETTINGS)
    compare(health, 3.0, 4)
    health.forget_drift()
    assert health.safe_mode is not None
    compare(health, 1.1, 3)
    assert health.safe_mode is not None
    compare(health, 1.1, 1)
    assert health.safe_mode is None


def test_between_the_bounds_trust_stays_as_it_was() -> None:
    health = Health(SETTINGS)
    compare(health, 1.5, 8)
    assert health.safe_mode is None
    compare(health, 3.0, 8)
    compare(health, 1.5, 8)
    assert health.safe_mode is not None


def test_iterations_without_usable_times_make_a_model_stale_until_times_return() -> None:
    health = Health(SETTINGS)
    for _ in range(3):
        health.missed(math.nan)
    assert health.safe_mode is not None
    assert "stale: 3 iterations" in health.safe_mode
    for _ in range(2):
        health.measured()
    assert health.safe_mode is not None
    health.measured()
    assert health.safe_mode is None


def test_how_many_of_the_newest_drift_is_counted_from_the_end() -> None:
    health = Health(HealthSettings(recent=8))
    compare(health, 1.0, 4)
    compare(health, 2.9, 3)
    assert health.drifting(Regime.DECODE, 3.0) == 3
    assert health.drifting(Regime.EXTEND, 3.0) == 0
    assert health.drifting(Regime.DECODE, 1 / 3.0) == 0


def test_the_status_reports_each_regime_that_was_compared() -> None:
    health = Health(SETTINGS)
    assert health.status().regimes == ()
    assert health.status().drift_ratio is None
    # Predicted 1 s, bound 1.1 s: half take 1.25 s, half 0.8 s.
    for _ in range(4):
        compare(health, 1.25, 1)
        compare(health, 0.8, 1)
    compare(health, 1.0, 4, Regime.MIXED)
    decode, mixed = health.status().regimes
    assert (decode.regime, decode.samples, mixed.regime) == ("decode", 8, "mixed")
    # |1 / 1.25 - 1| = 0.2 and |1 / 0.8 - 1| = 0.25.
    assert decode.p50_error == pytest.approx(0.225)
    assert decode.signed_bias == pytest.approx(0.025)
    assert decode.under_prediction_rate == 0.5
    assert decode.coverage == 0.5
    assert mixed.p99_error == 0.0
