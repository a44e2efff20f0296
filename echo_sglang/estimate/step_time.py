"""Step-time model: how long one iteration takes, with an upper bound that is kept honest.

A prediction is the sum of what was fitted offline (a profile, if there is one), weighed by
how it fares now, and of a live non-negative least-squares fit on the sums of `BatchShape`.
Both are monotone in a chunk, so one can be solved for by bisection. The upper bound
multiplies the prediction by a factor per regime that follows the wanted coverage online, and
by a further one beyond the batches that were measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from echo_sglang.domain.batch import BatchShape, Regime
from echo_sglang.estimate.conformal import START_LOG_FACTOR, AdaptiveFactor
from echo_sglang.estimate.features import NUM_FEATURES, features, linear_seconds
from echo_sglang.estimate.fitted import FittedTimes
from echo_sglang.estimate.health import Health, HealthSettings, StepTimeStatus
from echo_sglang.estimate.hull import LIVE_REACH, Hull, live_hull
from echo_sglang.estimate.live_fit import LiveFit

WIDENING, WIDENING_PER_OCTAVE, MAX_WIDENING = 0.08, 0.25, math.log(4.0)
"""Log factor added beyond the measured batches: at once, for every doubling, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimeModel:
    """A fitted model; immutable, so a decision can be replayed with the one it used.

    weights_s: seconds per unit of each entry of `features`; empty without a live fit.
    fitted, fitted_weight: a profile's times and what they are multiplied with.
    extend_log_factor, decode_log_factor, mixed_log_factor: log of upper bound over
    prediction, per regime; None for mixed means as extend.
    largest_extend_tokens: the largest prefill measured; beyond twice of it nothing is known.
    hull: the batches measured; None knows only `largest_extend_tokens`.
    """

    weights_s: tuple[float, ...] = ()
    fitted: FittedTimes | None = None
    fitted_weight: float = 1.0
    extend_log_factor: float = START_LOG_FACTOR
    decode_log_factor: float = START_LOG_FACTOR
    mixed_log_factor: float | None = None
    largest_extend_tokens: int = 0
    samples: int = 0
    hull: Hull | None = None

    def __post_init__(self) -> None:
        if self.weights_s and len(self.weights_s) != NUM_FEATURES:
            raise ValueError(f"{len(self.weights_s)} weights, expected {NUM_FEATURES} or none")

    @property
    def trained(self) -> bool:
        """False until enough iterations were measured to fit, and in safe mode."""
        return bool(self.weights_s) or self.fitted is not None

    def predict(self, shape: BatchShape) -> float:
        """Expected seconds of one iteration; 0.0 while untrained."""
        seconds = linear_seconds(self.weights_s, shape) if self.weights_s else 0.0
        if self.fitted is not None and self.fitted_weight:
            seconds += self.fitted_weight * self.fitted.seconds(shape)
        return seconds

    def upper(self, shape: BatchShape) -> float:
        """Seconds that one iteration stays below in the wanted share of cases."""
        if not shape.extend_tokens:
            factor = self.decode_log_factor
        elif shape.decode_rows and self.mixed_log_factor is not None:
            factor = self.mixed_log_factor
        else:
            factor = self.extend_log_factor
        if self.hull is not None:
            excess = self.hull.excess(shape)
            if excess > 1.0:
                factor += _widening(excess)
        return self.predict(shape) * math.exp(factor)

    def extrapolates(self, shape: BatchShape) -> bool:
        """True if nothing as large as `shape` was measured: its time is a guess."""
        if self.hull is not None:
            return self.hull.excess(shape) > 1.0
        return shape.extend_tokens > LIVE_REACH * self.largest_extend_tokens

    def log_factor(self, regime: Regime) -> float:
        """Log of upper bound over prediction within the hull."""
        if regime is Regime.DECODE:
            return self.decode_log_factor
        if regime is Regime.MIXED and self.mixed_log_factor is not None:
            return self.mixed_log_factor
        return self.extend_log_factor

    def widening(self, shape: BatchShape) -> float:
        """What leaving the hull adds to the log factor; 0.0 inside."""
        excess = 0.0 if self.hull is None else self.hull.excess(shape)
        return _widening(excess) if excess > 1.0 else 0.0


def _widening(excess: float) -> float:
    """The same for a batch so many times larger than what is trusted."""
    if math.isinf(excess):
        return MAX_WIDENING
    return min(WIDENING + WIDENING_PER_OCTAVE * math.log2(excess), MAX_WIDENING)


LIVE_MATURE = 128
"""Iterations of a regime before drift of a model that began with nothing counts."""


class StepTimeFitter:
    """Learns a `StepTimeModel` from measured iterations; `model` is always usable.

    start: a model to go on from, such as a profile's; without one it learns from nothing.
    Refits every `refit_every` iterations on the last `window` of each regime. When
    predictions drift or times stop making sense, `model` is an untrained one (safe mode)
    until new iterations are predicted well again.
    """

    def __init__(
        self,
        *,
        start: StepTimeModel | None = None,
        coverage: float = 0.95,
        window: int = 384,
        refit_every: int = 16,
        min_samples: int = 16,
        half_life: int = 96,
        health: HealthSettings | None = None,
    ) -> None:
        self._refit_every = refit_every
        self._min_samples = min_samples
        self._since_fit = self._observed = 0
        self._model = StepTimeModel(hull=live_hull()) if start is None else start
        self._profile = self._model.fitted
        self._factors = {
            regime: AdaptiveFactor(coverage=coverage, log_factor=self._model.log_factor(regime))
            for regime in Regime
        }
        if health is None:
            health = HealthSettings(mature=0 if start is not None else LIVE_MATURE)
        self._health = Health(health)
        profiled = self._profile is not None
        self._live = LiveFit(
            columns=NUM_FEATURES + profiled, window=window, half_life=half_life, profiled=profiled
        )

    @property
    def model(self) -> StepTimeModel:
        """The model to decide with now; untrained while in safe mode."""
        if self._health.safe_mode is None:
            return self._model
        return StepTimeModel(
            samples=self._model.samples,
            largest_extend_tokens=self._model.largest_extend_tokens,
            hull=self._model.hull,
        )

    def observe(self, shape: BatchShape, seconds: float) -> None:
        """Learn from one finished iteration; a time that cannot be teaches only distrust."""
        if not math.isfinite(seconds) or seconds <= 0.0:
            self._health.missed(seconds)
            return
        self._health.measured()
        drift_ratio = self._calibrate(shape, seconds)
        row = features(shape)
        if self._profile is not None:
            row = (*row, self._profile.seconds(shape))
        self._live.add(shape.regime, row, seconds)
        self._note(shape)
        self._observed += 1
        self._since_fit += 1
        if drift_ratio is not None:
            self._restart(drift_ratio)
        due = self._refit_every if self._model.trained else 1
        if self._since_fit >= due and self._observed >= self._min_samples:
            self.refit()

    def refit(self) -> None:
        """Fit anew to what was measured. `observe` does so when it is due."""
        early = self._observed < 4 * self._min_samples
        if early and self._live.one_sided and self._profile is None:
            return
        weights = self._live.weights(self._model.fitted_weight)
        self._since_fit = 0
        if weights is None:
            return
        if self._profile is None:
            self._model = replace(self._model, weights_s=weights)
        else:
            live = weights[:NUM_FEATURES] if any(weights[:NUM_FEATURES]) else ()
            self._model = replace(self._model, weights_s=live, fitted_weight=weights[-1])

    def median_abs_error(self) -> float | None:
        """Median of |predicted / measured - 1| over the last windows; None while untrained."""
        return self._health.median_abs_error()

    def status(self) -> StepTimeStatus:
        """How predictions fare against measurements, and whether this is safe mode."""
        return self._health.status()

    def _calibrate(self, shape: BatchShape, seconds: float) -> float | None:
        """Hold the prediction against the measurement; see `Health.compared`.

        A guess beyond the hull is not held against the model.
        """
        regime = shape.regime
        predicted_s = self._model.predict(shape)
        if predicted_s <= 0.0 or self._model.widening(shape) > 0.0:
            return None
        factor = self._factors[regime]
        upper_s = predicted_s * math.exp(factor.log_factor)
        self._factors[regime] = factor.following(math.log(seconds / predicted_s))
        return self._health.compared(regime, predicted_s, upper_s, seconds)

    def _restart(self, drift_ratio: float) -> None:
        """Fit to the server as it is now: what was measured before is taken to scale alike."""
        newer = {regime: self._health.drifting(regime, drift_ratio) for regime in Regime}
        self._live.scale_older(drift_ratio, newer=newer)
        weight = self._model.fitted_weight * drift_ratio
        self._model = replace(self._model, fitted_weight=weight)
        self.refit()
        self._health.forget_drift()

    def _note(self, shape: BatchShape) -> None:
        """Every iteration: spelled out, since `replace` takes three times as long."""
        model = self._model
        self._model = StepTimeModel(
            weights_s=model.weights_s,
            fitted=model.fitted,
            fitted_weight=model.fitted_weight,
            samples=model.samples + 1,
            largest_extend_tokens=max(model.largest_extend_tokens, shape.extend_tokens),
            hull=None if model.hull is None else model.hull.grown(shape),
            extend_log_factor=self._factors[Regime.EXTEND].log_factor,
            decode_log_factor=self._factors[Regime.DECODE].log_factor,
            mixed_log_factor=self._factors[Regime.MIXED].log_factor,
        )
