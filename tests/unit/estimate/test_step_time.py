"""The step-time model learns a known machine, keeps its bound honest, and knows when it cannot."""

from __future__ import annotations

import math
import random

import pytest

from echo_sglang.domain.batch import BatchShape, StepSample
from echo_sglang.estimate.conformal import MAX_LOG_FACTOR
from echo_sglang.estimate.hull import PROFILE_REACH, hull_of
from echo_sglang.estimate.step_time import MAX_WIDENING, StepTimeFitter, StepTimeModel

from .machines import machine_samples, machine_training


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


def feed(fitter: StepTimeFitter, samples: list[StepSample], slower: float = 1.0) -> None:
    for sample in samples:
        fitter.observe(sample.shape, slower * sample.seconds)


def median_error(model: StepTimeModel, samples: list[StepSample], slower: float = 1.0) -> float:
    errors = sorted(abs(model.predict(s.shape) / (slower * s.seconds) - 1.0) for s in samples)
    return errors[len(errors) // 2]


def from_profile() -> StepTimeFitter:
    return StepTimeFitter(start=machine_training().model)


def test_a_profile_serves_from_the_first_iteration() -> None:
    fitter = from_profile()
    assert fitter.model.trained
    assert median_error(fitter.model, machine_samples(200, seed=20)) < 0.02


def test_a_profile_is_not_unlearned_by_iterations_that_confirm_it() -> None:
    fitter = from_profile()
    feed(fitter, machine_samples(600, seed=21))
    assert median_error(fitter.model, machine_samples(300, seed=22)) < 0.025
    assert fitter.model.fitted is machine_training().model.fitted
    assert fitter.status().safe_mode is None


def test_a_profile_knows_better_than_a_server_that_learned_for_as_long() -> None:
    confirmed, learned = from_profile(), StepTimeFitter()
    samples = machine_samples(40, seed=23)
    feed(confirmed, samples)
    feed(learned, samples)
    new = machine_samples(300, seed=24)
    assert median_error(confirmed.model, new) < 0.5 * median_error(learned.model, new)


def test_a_somewhat_slower_server_is_followed_without_losing_trust() -> None:
    fitter = from_profile()
    feed(fitter, machine_samples(200, seed=25), slower=1.2)
    assert fitter.model.trained
    assert median_error(fitter.model, machine_samples(200, seed=26), slower=1.2) < 0.03


@pytest.mark.parametrize("start", ["profile", "nothing"])
@pytest.mark.parametrize("slower", [3.0, 0.3])
def test_a_server_of_another_speed_means_safe_mode_until_it_is_learned(
    start: str, slower: float
) -> None:
    fitter = from_profile() if start == "profile" else StepTimeFitter()
    feed(fitter, machine_samples(400, seed=27))
    assert fitter.model.trained
    safe = []
    for sample in machine_samples(200, seed=28):
        fitter.observe(sample.shape, slower * sample.seconds)
        safe.append(not fitter.model.trained)
    # 16 iterations of a regime tell; three regimes alternate, and 16 more show the new fit.
    assert 16 <= safe.index(True) <= 60
    assert sum(safe) <= 70
    assert fitter.model.trained and fitter.status().safe_mode is None
    assert median_error(fitter.model, machine_samples(200, seed=29), slower=slower) < 0.12


def test_in_safe_mode_the_model_looks_untrained_and_the_reason_is_told() -> None:
    fitter = from_profile()
    shape = BatchShape(decode_rows=4, decode_kv_tokens=2_000)
    for _ in range(16):
        fitter.observe(shape, 1.0)
    model = fitter.model
    assert not model.trained
    assert model.predict(shape) == model.upper(shape) == 0.0
    assert model.largest_extend_tokens == machine_training().model.largest_extend_tokens
    reason = fitter.status().safe_mode
    assert reason is not None and reason.startswith("drift: decode iterations take")


@pytest.mark.parametrize("seconds", [math.nan, 0.0, -1.0, math.inf])
def test_times_that_cannot_be_end_trust_until_usable_ones_come(seconds: float) -> None:
    fitter = from_profile()
    shape = BatchShape(decode_rows=4, decode_kv_tokens=2_000)
    good_s = fitter.model.predict(shape)
    for _ in range(8):
        assert fitter.model.trained
        fitter.observe(shape, seconds)
    assert not fitter.model.trained
    reason = fitter.status().safe_mode
    assert reason is not None and reason.startswith("stale: 8 iterations")
    for _ in range(8):
        fitter.observe(shape, good_s)
    assert fitter.model.trained


def test_the_status_publishes_every_figure_per_regime() -> None:
    fitter = from_profile()
    feed(fitter, machine_samples(600, seed=30))
    status = fitter.status()
    assert [report.regime for report in status.regimes] == ["extend", "decode", "mixed"]
    for report in status.regimes:
        assert 100 <= report.samples <= 256
        assert report.p50_error <= report.p90_error <= report.p95_error <= report.p99_error < 0.2
        assert 0.88 <= report.coverage <= 1.0
        assert abs(report.signed_bias) < 0.02
        assert report.drift_ratio == pytest.approx(1.0, abs=0.02)
    assert status.drift_ratio is not None and status.drift_ratio < 1.1
    error = fitter.median_abs_error()
    assert error is not None and error < 0.03


def test_a_live_model_can_be_gone_on_from() -> None:
    learned = StepTimeFitter()
    feed(learned, machine_samples(300, seed=31))
    fitter = StepTimeFitter(start=learned.model)
    assert fitter.model == learned.model
    feed(fitter, machine_samples(300, seed=32))
    assert fitter.model.trained
    assert fitter.model.samples == 600


def test_beyond_the_hull_the_bound_widens_with_the_distance_up_to_its_largest() -> None:
    seen = BatchShape(decode_rows=4, decode_kv_tokens=4_000)
    model = StepTimeModel(
        weights_s=(0.01, *(0.0,) * 12), decode_log_factor=0.0, hull=hull_of([seen], PROFILE_REACH)
    )
    bounds = [
        model.upper(BatchShape(decode_rows=rows, decode_kv_tokens=1_000 * rows))
        for rows in (4, 5, 8, 16, 10_000)
    ]
    assert bounds[0] == pytest.approx(0.01)
    assert bounds == sorted(set(bounds))
    assert bounds[-1] == pytest.approx(0.01 * math.exp(MAX_WIDENING))


def test_a_guess_beyond_the_hull_is_not_held_against_the_model() -> None:
    fitter = from_profile()
    before = fitter.model
    far = BatchShape(decode_rows=4_000, decode_kv_tokens=9_000_000)
    assert before.extrapolates(far)
    fitter.observe(far, 5.0 * before.predict(far))
    after = fitter.model
    assert after.decode_log_factor == before.decode_log_factor
    assert fitter.status().regimes == ()
    assert not after.extrapolates(far)


def test_a_model_without_a_hull_knows_prefill_up_to_twice_its_largest() -> None:
    model = StepTimeModel(weights_s=(0.01, *(0.0,) * 12), largest_extend_tokens=100)
    assert not model.extrapolates(BatchShape().with_chunk(200, 9_000))
    assert model.extrapolates(BatchShape().with_chunk(201, 0))


def test_weights_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="11 weights, expected 13"):
        StepTimeModel(weights_s=(0.0,) * 11)


def test_old_times_are_forgotten() -> None:
    # 1.5 times slower is no drift, but what it was before must not linger.
    fitter = StepTimeFitter()
    feed(fitter, machine_samples(1_200, seed=33))
    feed(fitter, machine_samples(600, seed=34), slower=1.5)
    judged = machine_samples(300, seed=35)
    fresh = StepTimeFitter()
    feed(fresh, machine_samples(600, seed=34), slower=1.5)
    stale = median_error(fitter.model, judged, slower=1.5)
    assert stale < median_error(fresh.model, judged, slower=1.5) + 0.02
