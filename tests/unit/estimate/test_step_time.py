"""The step-time model learns a known machine and keeps its bound honest."""

from __future__ import annotations

import math
import random

import pytest

from echo_sglang.domain.batch import BatchShape
from echo_sglang.estimate.conformal import MAX_LOG_FACTOR
from echo_sglang.estimate.step_time import StepTimeFitter, StepTimeModel


def true_seconds(shape: BatchShape) -> float:
    """8 ms + 1.2 ms a token + 4 ms a row + 2 us a KV token + 0.1 us a pair."""
    seconds = 0.008 + 0.0012 * shape.extend_tokens + 0.004 * shape.decode_rows
    return seconds + 2e-6 * shape.decode_kv_tokens + 1e-7 * shape.extend_pairs


def random_shape(rng: random.Random) -> BatchShape:
    shape = BatchShape(decode_rows=(rows := rng.randint(0, 12)), decode_kv_tokens=rows * 400)
    if rng.random() < 0.6:
        shape = shape.with_chunk(rng.randint(1, 300), rng.randint(0, 1500))
    return shape if shape.decode_rows or shape.extend_tokens else BatchShape(decode_rows=1)


def trained(noise: float, steps: int = 2_000, seed: int = 1) -> tuple[StepTimeFitter, float]:
    rng = random.Random(seed)
    fitter = StepTimeFitter(coverage=0.95)
    covered = counted = 0
    for step in range(steps):
        shape = random_shape(rng)
        seconds = true_seconds(shape) * math.exp(rng.gauss(0.0, noise))
        if step >= 200:
            counted += 1
            covered += seconds <= fitter.model.upper(shape)
        fitter.observe(shape, seconds)
    return fitter, covered / counted


def test_a_noiseless_machine_is_learned_to_a_percent() -> None:
    fitter, _ = trained(noise=0.0)
    rng = random.Random(2)
    for _ in range(100):
        shape = random_shape(rng)
        assert fitter.model.predict(shape) == pytest.approx(true_seconds(shape), rel=0.01)


def test_the_upper_bound_covers_the_wanted_share_of_a_noisy_machine() -> None:
    _, coverage = trained(noise=0.2)
    assert 0.93 <= coverage <= 0.975


def test_more_work_is_never_predicted_to_be_faster() -> None:
    fitter, _ = trained(noise=0.3, steps=400)
    small = BatchShape(decode_rows=3, decode_kv_tokens=900)
    for grown in (
        small.with_chunk(10, 0),
        small.with_chunk(10, 500),
        BatchShape(decode_rows=4, decode_kv_tokens=900),
        BatchShape(decode_rows=3, decode_kv_tokens=2_000),
    ):
        assert fitter.model.predict(grown) >= fitter.model.predict(small)


def test_the_bound_follows_a_machine_that_becomes_slower() -> None:
    fitter, _ = trained(noise=0.05)
    shape = BatchShape(decode_rows=4, decode_kv_tokens=1_600)
    for _ in range(400):
        fitter.observe(shape, 2.0 * true_seconds(shape))
    assert fitter.model.upper(shape) >= 1.9 * true_seconds(shape)


def test_an_untrained_model_says_so() -> None:
    assert not StepTimeModel().trained
    assert StepTimeModel().predict(BatchShape(decode_rows=1)) == 0.0
    assert StepTimeFitter().median_abs_error() is None


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_impossible_times_teach_nothing(seconds: float) -> None:
    fitter = StepTimeFitter()
    before = fitter.model
    fitter.observe(BatchShape(decode_rows=1), seconds)
    assert fitter.model == before


def test_one_wild_iteration_moves_the_bound_only_a_little() -> None:
    fitter, _ = trained(noise=0.05)
    shape = BatchShape(decode_rows=4, decode_kv_tokens=1_600)
    before = fitter.model.decode_log_factor
    fitter.observe(shape, 50.0)
    assert before < fitter.model.decode_log_factor <= before + 0.05 < MAX_LOG_FACTOR
