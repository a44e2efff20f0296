"""The local correction learns what curves miss, stays bounded and fades."""

from __future__ import annotations

import math

import numpy as np
import pytest

from echo_sglang.estimate.lattice import (
    CELLS_PER_OCTAVE,
    MAX_FALL,
    MAX_LOG_RATIO,
    NO_CORRECTION,
    fit_lattice,
)


def around(rows: float, per_row: float, fitted_s: float, log_ratio: float, count: int = 60):
    """Measurements that all say the same about one kind of batch."""
    ones = np.ones(count)
    return fit_lattice(
        rows * ones, rows * per_row * ones, fitted_s * ones, np.full(count, log_ratio)
    )


def test_a_repeated_ratio_is_learned_where_it_was_seen() -> None:
    lattice = around(8, 500, 0.04, 0.2)
    assert lattice.log_ratio(8, 4_000, 0.04) == pytest.approx(0.2, abs=0.02)


def test_the_correction_is_bounded_to_half_and_double() -> None:
    assert around(8, 500, 0.04, 5.0).log_ratio(8, 4_000, 0.04) <= MAX_LOG_RATIO
    assert around(8, 500, 0.04, -5.0).log_ratio(8, 4_000, 0.04) >= -MAX_LOG_RATIO


@pytest.mark.parametrize("log_ratio", [0.6, -0.6])
def test_far_from_any_measurement_there_is_no_correction(log_ratio: float) -> None:
    lattice = around(8, 500, 0.04, log_ratio)
    assert lattice.log_ratio(8, 4_000, 0.04 * 8) == pytest.approx(0.0, abs=1e-3)
    assert lattice.log_ratio(8, 4_000, 0.04 / 8) == pytest.approx(0.0, abs=1e-3)
    assert lattice.log_ratio(64, 4_000, 0.04) == 0.0
    assert lattice.log_ratio(8, 64_000, 0.04) == 0.0


def test_without_measurements_nothing_is_corrected() -> None:
    nothing = np.array([])
    assert fit_lattice(nothing, nothing, nothing, nothing) == NO_CORRECTION
    assert NO_CORRECTION.log_ratio(3, 100, 0.01) == 0.0


def test_a_sharp_drop_is_slowed_to_what_keeps_the_time_from_falling() -> None:
    # Twice as slow as fitted at 10 ms, twice as fast at 12 ms: the truth falls, the model must not.
    rows = np.full(80, 4.0)
    fitted_s = np.repeat([0.010, 0.012], 40)
    log_ratios = np.repeat([math.log(2.0), -math.log(2.0)], 40)
    lattice = fit_lattice(rows, 400.0 * rows, fitted_s, log_ratios)
    before = 0.008
    for step in range(1, 200):
        fitted = 0.008 * 1.01**step
        corrected = fitted * math.exp(lattice.log_ratio(4, 1_600, fitted))
        assert corrected >= before * (1.0 - 1e-9)
        before = corrected


def test_one_node_falls_to_the_next_by_no_more_than_the_time_rises() -> None:
    # A cell is 2 ** (1 / CELLS_PER_OCTAVE) of fitted time: its log is what may be lost.
    assert pytest.approx(math.log(2.0 ** (1 / CELLS_PER_OCTAVE))) == MAX_FALL
