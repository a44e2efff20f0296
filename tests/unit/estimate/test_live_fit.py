"""The live fit remembers the newest iterations of each regime and finds what explains them."""

from __future__ import annotations

import numpy as np
import pytest

from echo_sglang.domain.batch import Regime
from echo_sglang.estimate.live_fit import LiveFit


def live_fit(*, window: int = 32, profiled: bool = False) -> LiveFit:
    return LiveFit(columns=2, window=window, half_life=16, profiled=profiled)


def test_a_linear_machine_is_found() -> None:
    fit = live_fit()
    for size in range(1, 20):
        fit.add(Regime.DECODE, (1.0, float(size)), 0.01 + 0.002 * size)
    assert fit.weights(1.0) == pytest.approx((0.01, 0.002), rel=1e-3)


def test_only_the_newest_of_a_window_count_however_many_came_before() -> None:
    rng = np.random.default_rng(1)
    rows = [(1.0, float(size)) for size in rng.uniform(1.0, 50.0, 201)]
    seconds = 0.01 * np.exp(0.1 * rng.standard_normal(201))
    long, short = live_fit(), live_fit()
    for row, value in zip(rows, seconds, strict=True):
        long.add(Regime.MIXED, row, float(value))
    for row, value in zip(rows[-32:], seconds[-32:], strict=True):
        short.add(Regime.MIXED, row, float(value))
    assert long.weights(1.0) == pytest.approx(short.weights(1.0))


def test_a_long_phase_of_one_regime_does_not_forget_another() -> None:
    fit = live_fit()
    fit.add(Regime.EXTEND, (0.0, 100.0), 0.2)
    for _ in range(500):
        fit.add(Regime.DECODE, (1.0, 0.0), 0.01)
    weights = fit.weights(1.0)
    assert weights is not None
    assert weights[1] == pytest.approx(0.002, rel=0.01)


def test_it_is_one_sided_until_prefill_and_decode_were_both_seen() -> None:
    fit = live_fit()
    assert fit.one_sided
    fit.add(Regime.DECODE, (1.0, 0.0), 0.01)
    assert fit.one_sided
    fit.add(Regime.EXTEND, (1.0, 1.0), 0.01)
    assert not fit.one_sided
    mixed = live_fit()
    mixed.add(Regime.MIXED, (1.0, 1.0), 0.01)
    assert not mixed.one_sided


def test_times_before_a_change_are_scaled_and_those_after_are_kept() -> None:
    changed, known = live_fit(), live_fit()
    for size in range(1, 11):
        slow = size > 7  # the last three were measured after the server became three times slower
        changed.add(Regime.DECODE, (1.0, float(size)), 0.01 * size * (3.0 if slow else 1.0))
        known.add(Regime.DECODE, (1.0, float(size)), 0.03 * size)
    changed.scale_older(3.0, newer={Regime.DECODE: 3, Regime.EXTEND: 0, Regime.MIXED: 0})
    assert changed.weights(1.0) == pytest.approx(known.weights(1.0))


def test_the_profile_explains_what_both_could() -> None:
    # The second column is the profile's prediction; it is right, and so is a constant.
    fit = live_fit(profiled=True)
    for _ in range(20):
        fit.add(Regime.DECODE, (1.0, 0.01), 0.01)
    constant_s, weight = fit.weights(1.0) or (0.0, 0.0)
    assert weight * 0.01 > constant_s
    assert constant_s + weight * 0.01 == pytest.approx(0.01)


def test_the_newest_iterations_set_the_pace() -> None:
    fit = live_fit(window=200)
    for step in range(200):
        fit.add(Regime.DECODE, (1.0, 0.0), 0.01 if step < 160 else 0.012)
    assert (fit.weights(1.0) or (0.0,))[0] == pytest.approx(0.012)


def test_rows_of_nothing_determine_nothing() -> None:
    fit = live_fit()
    fit.add(Regime.DECODE, (0.0, 0.0), 0.01)
    assert fit.weights(1.0) is None
