"""Offline fit of a step-time model, calibrated and judged on iterations it was not shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from echo_sglang.domain.batch import Regime, StepSample
from echo_sglang.errors import ProfileError
from echo_sglang.estimate.conformal import split_log_factor
from echo_sglang.estimate.curves import fit_curves, inputs
from echo_sglang.estimate.fitted import FittedTimes, RegimeFit
from echo_sglang.estimate.hull import PROFILE_REACH, hull_of
from echo_sglang.estimate.lattice import fit_lattice
from echo_sglang.estimate.report import RegimeReport, report_on
from echo_sglang.estimate.step_time import StepTimeModel

Array = NDArray[np.float64]

MIN_SAMPLES = 60
MIN_CALIBRATION = 20
"""Held-out iterations below which a regime shares the factor of all."""
FOLDS = 4
SHORTEST_S = 1e-9
"""No prediction counts as shorter."""
OTHERS_WEIGHT = 20.0
"""Iterations of its own that all of the other regimes together count like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A model and how it fared on the last part of the split.

    reports: one per regime present there, then "overall".
    """

    model: StepTimeModel
    reports: tuple[RegimeReport, ...]


def train(
    samples: Sequence[StepSample],
    *,
    seed: int,
    coverage: float = 0.95,
    split: tuple[float, float, float] = (0.3, 0.2, 0.5),
) -> Training:
    """Fit on the first share of `split`, calibrate the bound on the second, judge on the third.

    The shares are drawn at random by `seed`, from each regime alike.

    Raises ProfileError if there is too little, or nothing usable, to learn from.
    """
    _check(samples, coverage, split)
    fitting, calibration, judging = _divide(samples, np.random.default_rng(seed), split)
    fitted = fit_times(fitting)
    model = StepTimeModel(
        fitted=fitted,
        extend_log_factor=0.0,
        decode_log_factor=0.0,
        mixed_log_factor=0.0,
        largest_extend_tokens=max(s.shape.extend_tokens for s in fitting),
        samples=len(fitting),
        hull=hull_of((s.shape for s in fitting), PROFILE_REACH),
    )
    model = _calibrated(model, fitting, calibration, coverage)
    return Training(model=model, reports=judge(model, judging))


def fit_times(samples: Sequence[StepSample]) -> FittedTimes:
    """Curves and correction of every regime, all regimes lending a little to each."""
    x = np.array([inputs(sample.shape) for sample in samples], dtype=float)
    seconds = np.array([sample.seconds for sample in samples])
    regimes = np.array([sample.shape.regime.value for sample in samples])
    fits = {regime: _fit_regime(x, seconds, regimes == regime.value) for regime in Regime}
    return FittedTimes(
        extend=fits[Regime.EXTEND], decode=fits[Regime.DECODE], mixed=fits[Regime.MIXED]
    )


def judge(model: StepTimeModel, samples: Sequence[StepSample]) -> tuple[RegimeReport, ...]:
    """Reports on iterations the model was not shown: per regime present, then overall."""
    predicted = np.array([model.predict(sample.shape) for sample in samples])
    upper = np.array([model.upper(sample.shape) for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    regimes = np.array([sample.shape.regime.value for sample in samples])
    reports = [
        report_on(regime.value, predicted[own], upper[own], seconds[own])
        for regime in Regime
        if (own := regimes == regime.value).any()
    ]
    return (*reports, report_on("overall", predicted, upper, seconds))


def _fit_regime(x: Array, seconds: Array, own: NDArray[np.bool_]) -> RegimeFit:
    others = int((~own).sum())
    lent = math.sqrt(min(OTHERS_WEIGHT / others, 1.0)) if others else 0.0
    curves = fit_curves(x, seconds, np.where(own, 1.0, lent), own)
    fitted_s = curves.many(x[own])
    possible = fitted_s > 0.0
    log_ratios = np.log(seconds[own][possible] / fitted_s[possible])
    rows, kv_tokens = x[own][possible, 3], x[own][possible, 4]
    return RegimeFit(curves, fit_lattice(rows, kv_tokens, fitted_s[possible], log_ratios))


def _calibrated(
    model: StepTimeModel,
    fitting: Sequence[StepSample],
    calibration: Sequence[StepSample],
    coverage: float,
) -> StepTimeModel:
    """The model with a factor per regime from held-out errors.

    Errors on the calibration share are few for a high quantile. Errors on the fitting share
    by fits that were not shown them join in, scaled to the size of the former: they add to
    what is known of the errors' distribution, not of their size.
    """
    errors = [_log_ratio(model, s) - model.widening(s.shape) for s in calibration]
    held_out = _scores(calibration, errors)
    crossed = _scores(fitting, _cross_fitted(fitting))
    everything = np.concatenate([held_out[regime] for regime in Regime])
    factors: dict[Regime, float] = {}
    for regime in Regime:
        own = held_out[regime]
        if len(own) < MIN_CALIBRATION:
            own = everything
        elif _size(crossed[regime], own) > 0.0:
            scale = _size(own, own) / _size(crossed[regime], own)
            own = np.concatenate([own, scale * crossed[regime]])
        factors[regime] = split_log_factor(own, coverage)
    return replace(
        model,
        extend_log_factor=factors[Regime.EXTEND],
        decode_log_factor=factors[Regime.DECODE],
        mixed_log_factor=factors[Regime.MIXED],
    )


def _cross_fitted(samples: Sequence[StepSample]) -> list[float]:
    """Log errors of each sample by a fit to the other folds; they come shuffled already."""
    errors = [0.0] * len(samples)
    for fold in range(FOLDS):
        fitted = fit_times([s for i, s in enumerate(samples) if i % FOLDS != fold])
        model = StepTimeModel(fitted=fitted)
        for i in range(fold, len(samples), FOLDS):
            errors[i] = _log_ratio(model, samples[i])
    return errors


def _log_ratio(model: StepTimeModel, sample: StepSample) -> float:
    return math.log(sample.seconds / max(model.predict(sample.shape), SHORTEST_S))


def _scores(samples: Sequence[StepSample], errors: Sequence[float]) -> dict[Regime, Array]:
    return {
        regime: np.array(
            [e for s, e in zip(samples, errors, strict=True) if s.shape.regime is regime],
            dtype=float,
        )
        for regime in Regime
    }


def _size(errors: Array, like: Array) -> float:
    """Mean absolute error, none counted as more than the 90 % quantile of `like`."""
    most = float(np.quantile(np.abs(like), 0.9))
    return float(np.minimum(np.abs(errors), most).mean()) if len(errors) else 0.0


def _divide(
    samples: Sequence[StepSample], rng: np.random.Generator, split: tuple[float, float, float]
) -> tuple[list[StepSample], list[StepSample], list[StepSample]]:
    parts: tuple[list[StepSample], ...] = ([], [], [])
    for regime in Regime:
        own = [sample for sample in samples if sample.shape.regime is regime]
        order = rng.permutation(len(own))
        ends = [round(split[0] * len(own)), round((split[0] + split[1]) * len(own))]
        for part, chosen in zip(parts, np.split(order, ends), strict=True):
            part.extend(own[i] for i in chosen)
    return parts[0], parts[1], parts[2]


def _check(
    samples: Sequence[StepSample], coverage: float, split: tuple[float, float, float]
) -> None:
    if not 0.5 <= coverage < 1.0:
        raise ProfileError(f"coverage {coverage} given; it must be at least 0.5 and below 1")
    if min(split) <= 0.0 or not math.isclose(sum(split), 1.0):
        raise ProfileError(
            f"split {split} given; its three shares (fit, calibrate, judge) must be "
            "positive and add up to 1"
        )
    if len(samples) < MIN_SAMPLES:
        raise ProfileError(
            f"{len(samples)} iterations given; at least {MIN_SAMPLES} are needed, of every "
            "kind that will be served: record a longer trace"
        )
    unusable = [i for i, sample in enumerate(samples) if not sample.usable]
    if unusable:
        raise ProfileError(
            f"{len(unusable)} of {len(samples)} iterations have an impossible time, first "
            f"number {unusable[0]}: {samples[unusable[0]].seconds} s; times must be finite and "
            "positive: leave these records out"
        )
    if len({sample.shape for sample in samples}) < 2 or len({s.seconds for s in samples}) < 2:
        raise ProfileError(
            f"all {len(samples)} iterations are alike; batches of different sizes are needed "
            "to tell what costs time: record a trace with varied load"
        )
