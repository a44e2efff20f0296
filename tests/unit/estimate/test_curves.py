"""Curves follow steps and bends, and go on beyond the data."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls

from echo_sglang.domain.batch import BatchShape
from echo_sglang.estimate.curves import (
    NUM_INPUTS,
    Curve,
    fit_curves,
    inputs,
    least_squares,
    solve_nonnegative,
)


def token_rows(tokens: np.ndarray) -> np.ndarray:
    x = np.zeros((len(tokens), NUM_INPUTS))
    x[:, 0] = tokens
    return x


def test_a_step_at_a_tile_is_learned_where_there_are_enough_samples() -> None:
    tokens = np.arange(1.0, 513.0)
    seconds = 0.004 + 0.002 * np.ceil(tokens / 128)  # 6, 8, 10, 12 ms
    x = token_rows(tokens)
    curves = fit_curves(x, seconds, np.ones(512), np.ones(512, dtype=bool))
    # In the middle of each tile: 0.004 + 0.002 * tile.
    for tile in range(1, 5):
        at = curves.seconds((128.0 * tile - 50.0, 0.0, 0.0, 0.0, 0.0))
        assert at == pytest.approx(0.004 + 0.002 * tile, rel=0.02)


def test_beyond_the_data_a_curve_rises_as_over_its_upper_half() -> None:
    tokens = np.arange(16.0, 1025.0, 4.0)
    seconds = 0.001 + 1e-5 * tokens
    curves = fit_curves(
        token_rows(tokens), seconds, np.ones(len(tokens)), np.ones(len(tokens), dtype=bool)
    )
    assert curves.seconds((4096.0, 0.0, 0.0, 0.0, 0.0)) == pytest.approx(0.001 + 0.04096, rel=0.05)


def test_many_rows_are_evaluated_as_one_by_one() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(1.0, 5_000.0, size=(300, NUM_INPUTS))
    seconds = 0.001 + x @ np.array([1e-5, 1e-9, 1e-6, 1e-4, 1e-7])
    curves = fit_curves(x, seconds, np.ones(300), np.ones(300, dtype=bool))
    one_by_one = [curves.seconds(tuple(row)) for row in x]  # type: ignore[arg-type]
    np.testing.assert_allclose(curves.many(x), one_by_one, rtol=1e-12)


def test_weights_are_never_negative_even_where_time_falls() -> None:
    columns = np.column_stack([np.ones(50), np.arange(50.0)])
    weights = solve_nonnegative(columns, 10.0 - 0.1 * np.arange(50.0), np.ones(50))
    assert (weights >= 0.0).all()


def test_a_prefix_that_is_not_given_is_taken_from_the_pairs() -> None:
    known = BatchShape().with_chunk(100, 700)
    unknown = BatchShape(extend_tokens=100, extend_pairs=70_000, extend_square=10_000)
    assert inputs(known) == inputs(unknown) == (100, 75_000.0, 700, 0, 0)


def test_segments_must_match_their_knots() -> None:
    with pytest.raises(AssertionError):
        Curve((1.0,), (0.0,), (0.0,))


def test_a_search_that_does_not_end_gives_way_to_one_that_does() -> None:
    rng = np.random.default_rng(3)
    a = rng.uniform(size=(40, 12))
    b = a @ np.maximum(rng.normal(size=12), 0.0)
    with pytest.raises(RuntimeError):
        nnls(a, b, maxiter=1)
    assert least_squares(a, b, maxiter=1) == pytest.approx(nnls(a, b)[0], abs=1e-4)
