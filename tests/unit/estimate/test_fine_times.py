"""What a row or a short chunk adds to a decode step is told to a fraction of a percent."""

from __future__ import annotations

import numpy as np
import pytest

from echo_sglang.domain.batch import BatchShape
from echo_sglang.estimate.fine_times import (
    MAX_TOKENS,
    NUM_FEATURES,
    FineFitter,
    FineTimes,
    fine_features,
)


def machine(shape: BatchShape) -> float:
    """Bound by weights up to 91 tokens (12.4 ms), 0.103 ms for each beyond, 82 ns a KV token."""
    tokens = shape.extend_tokens + shape.decode_rows
    pairs = shape.extend_pairs + 0.5 * shape.extend_square
    beyond_s = 0.103e-3 * max(tokens - 91, 0)
    return 12.4e-3 + beyond_s + 82e-9 * shape.decode_kv_tokens + 3.4e-9 * pairs


def decode(rows: int, kv_tokens: int) -> BatchShape:
    return BatchShape(decode_rows=rows, decode_kv_tokens=kv_tokens)


def fitted(*, noise: float = 0.0, count: int = 2_000) -> FineTimes:
    rng = np.random.default_rng(7)
    fitter = FineFitter()
    for _ in range(count):
        rows = int(rng.integers(1, 9))
        shape = decode(rows, int(rows * rng.integers(500, 900) + 4_060 * rng.integers(0, 2)))
        if rng.random() < 0.3:
            shape = shape.with_chunk(int(rng.integers(1, 200)), int(rng.integers(0, 4_000)))
        fitter.observe(shape, machine(shape) * float(np.exp(noise * rng.standard_normal())))
    assert fitter.times is not None
    return fitter.times


def test_a_row_of_a_long_prompt_is_told_from_what_it_adds() -> None:
    times = fitted()
    added_s = times.predict(decode(6, 3_500 + 4_060)) - times.predict(decode(5, 3_500))
    assert added_s == pytest.approx(82e-9 * 4_060, rel=0.02)


def test_prompt_tokens_are_free_until_weights_are_read() -> None:
    times = fitted()
    alone_s = times.predict(decode(5, 3_500))
    for tokens in (16, 48, 64):
        assert times.predict(decode(5, 3_500).with_chunk(tokens, 0)) == pytest.approx(
            alone_s, rel=0.004
        )
    shape = decode(5, 3_500).with_chunk(160, 1_000)
    assert times.predict(shape) == pytest.approx(machine(shape), rel=0.01)


def test_noise_of_some_percent_leaves_what_a_row_adds_within_a_quarter() -> None:
    times = fitted(noise=0.02)
    added_s = times.predict(decode(6, 3_500 + 4_060)) - times.predict(decode(5, 3_500))
    assert added_s == pytest.approx(82e-9 * 4_060, rel=0.25)


def test_a_chunk_never_gets_cheaper_when_it_grows() -> None:
    times = fitted(noise=0.02)
    seconds = [times.predict(decode(5, 3_500).with_chunk(n, 2_000)) for n in range(1, MAX_TOKENS)]
    assert seconds == sorted(seconds)


def test_long_prompts_teach_nothing_and_are_not_asked_for() -> None:
    fitter = FineFitter(min_samples=1, refit_every=1)
    long = BatchShape().with_chunk(MAX_TOKENS + 1, 0)
    fitter.observe(long, 0.1)
    assert fitter.times is None
    assert not fitted(count=200).knows(long)


def test_a_prediction_is_the_weights_times_the_features() -> None:
    rng = np.random.default_rng(3)
    times = FineTimes(tuple(rng.uniform(0.0, 1.0, NUM_FEATURES)))
    for shape in (
        decode(3, 100),
        decode(12, 9_000),
        BatchShape().with_chunk(200, 50),
        decode(9, 500).with_chunk(70, 5).with_chunk(40, 3),
    ):
        dot = float(np.dot(times.weights_s, fine_features(shape)))
        assert times.predict(shape) == pytest.approx(dot)


def test_times_that_cannot_be_are_not_learned() -> None:
    fitter = FineFitter(min_samples=1, refit_every=1)
    for seconds in (0.0, -1.0, float("nan")):
        fitter.observe(decode(1, 10), seconds)
    assert fitter.times is None
