"""Training learns a server it was shown, is honest about it, and refuses what teaches nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from echo_sglang.domain.batch import BatchShape, Regime, StepSample
from echo_sglang.errors import ProfileError
from echo_sglang.estimate.training import judge, train

from .machines import machine_samples, machine_training

LARGEST = 2048


def test_each_regime_is_predicted_within_its_noise() -> None:
    # 2 % noise alone makes a median error of 1.35 % and a p95 of 3.9 %.
    for report in machine_training().reports:
        assert report.p50_error < 0.02, report
        assert report.p95_error < 0.06, report
        assert abs(report.signed_bias) < 0.01, report


def test_reports_cover_the_judged_half_of_every_regime_and_then_all() -> None:
    reports = machine_training().reports
    assert [r.regime for r in reports] == ["extend", "decode", "mixed", "overall"]
    assert reports[-1].samples == sum(r.samples for r in reports[:-1])
    assert reports[-1].samples == pytest.approx(1_000, abs=3)


@pytest.mark.slow
def test_the_bound_covers_what_was_asked_on_new_iterations() -> None:
    for coverage in (0.8, 0.95):
        model = train(machine_samples(1_500, seed=6), seed=6, coverage=coverage).model
        overall = judge(model, machine_samples(1_000, seed=7))[-1]
        assert overall.coverage == pytest.approx(coverage, abs=0.03)


def test_the_same_seed_gives_the_same_training_and_another_another_split() -> None:
    samples = machine_samples(200, seed=8)
    assert train(samples, seed=1) == train(samples, seed=1)
    assert train(samples, seed=1) != train(samples, seed=2)


@pytest.mark.slow
def test_beyond_the_hull_the_bound_holds_and_the_model_says_that_it_guesses() -> None:
    # Trained with chunks up to 1,024; judged on those of 1,100 to 2,048.
    model = train(machine_samples(1_500, seed=9, largest=1024), seed=9).model
    beyond = [
        s for s in machine_samples(2_500, seed=10, largest=LARGEST) if s.shape.extend_tokens >= 1100
    ]
    assert len(beyond) > 150
    assert all(model.extrapolates(sample.shape) for sample in beyond)
    assert judge(model, beyond)[-1].coverage >= 0.95
    within = machine_samples(500, seed=11, largest=1024)
    assert sum(model.extrapolates(sample.shape) for sample in within) <= 10


def test_a_regime_never_shown_is_predicted_from_the_others_and_called_a_guess() -> None:
    samples = [s for s in machine_samples(900, seed=12) if s.shape.regime is not Regime.MIXED]
    model = train(samples, seed=12).model
    mixed = BatchShape(decode_rows=4, decode_kv_tokens=2_000).with_chunk(200, 0)
    alone = BatchShape().with_chunk(200, 0)
    assert model.predict(mixed) >= 0.9 * model.predict(alone)
    assert model.extrapolates(mixed) and not model.extrapolates(alone)


def test_a_regime_of_a_few_iterations_borrows_from_the_rest() -> None:
    samples = machine_samples(600, seed=13)
    few = [s for s in samples if s.shape.regime is Regime.EXTEND][:6]
    others = [s for s in samples if s.shape.regime is not Regime.EXTEND]
    model = train([*few, *others], seed=13).model
    truth = [s for s in machine_samples(300, seed=14) if s.shape.regime is Regime.EXTEND]
    errors = [abs(model.predict(s.shape) / s.seconds - 1.0) for s in truth]
    assert float(np.median(errors)) < 0.25


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(math.nan, "nan"), (math.inf, "inf"), (0.0, "0.0"), (-0.1, "-0.1")],
)
def test_an_impossible_time_is_refused_with_its_number(seconds: float, said: str) -> None:
    samples = machine_samples(100, seed=1)
    samples[7] = StepSample(samples[7].shape, seconds)
    with pytest.raises(ProfileError, match=f"1 of 100 .* first number 7: {said} s"):
        train(samples, seed=1)


def test_too_few_iterations_are_refused_with_the_number_needed() -> None:
    with pytest.raises(ProfileError, match="12 iterations given; at least 60"):
        train(machine_samples(12, seed=1), seed=1)
    with pytest.raises(ProfileError, match="0 iterations given"):
        train([], seed=1)


def test_iterations_that_are_all_alike_are_refused() -> None:
    shape = BatchShape(decode_rows=1, decode_kv_tokens=100)
    with pytest.raises(ProfileError, match="alike"):
        train([StepSample(shape, 0.01 + 1e-6 * i) for i in range(100)], seed=1)
    varied = [StepSample(s.shape, 0.01) for s in machine_samples(100, seed=1)]
    with pytest.raises(ProfileError, match="alike"):
        train(varied, seed=1)


@pytest.mark.parametrize("split", [(0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (-0.1, 0.6, 0.5)])
def test_a_split_that_is_none_is_refused(split: tuple[float, float, float]) -> None:
    with pytest.raises(ProfileError, match="split"):
        train(machine_samples(100, seed=1), seed=1, split=split)


@pytest.mark.parametrize("coverage", [0.0, 1.0, 1.5, math.nan])
def test_a_coverage_that_cannot_be_had_is_refused(coverage: float) -> None:
    with pytest.raises(ProfileError, match="coverage"):
        train(machine_samples(100, seed=1), seed=1, coverage=coverage)
