"""Step-time model: how long one iteration takes, with an upper bound that is kept honest.

A non-negative least-squares fit on the sums of `BatchShape`, weighted by 1/seconds so that
short and long iterations count alike; non-negativity makes it monotone, so a chunk can be
solved for by bisection. The upper bound multiplies the prediction by a factor per regime
(with prefill, without) that follows the wanted coverage online: every iteration above the
bound raises it, every one below lowers it (adaptive conformal inference, Gibbs and Candès,
arXiv 2106.00170, on the log ratio of measured to predicted time).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from echo_sglang.domain.batch import BatchShape

TOKEN_HINGES = (128, 512, 1024)
ROW_HINGE = 8
MIN_LOG_FACTOR = math.log(1.02)
MAX_LOG_FACTOR = math.log(3.0)
START_LOG_FACTOR = math.log(1.3)


def features(shape: BatchShape) -> tuple[float, ...]:
    """The regressors of one batch, in a fixed order; all non-negative."""
    tokens = shape.extend_tokens
    return (
        1.0,
        1.0 if tokens else 0.0,
        float(tokens),
        *(float(max(tokens - hinge, 0)) for hinge in TOKEN_HINGES),
        float(shape.extend_pairs),
        float(shape.extend_square),
        float(shape.decode_rows),
        float(max(shape.decode_rows - ROW_HINGE, 0)),
        float(shape.decode_kv_tokens),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimeModel:
    """A fitted model; immutable, so a decision can be replayed with the one it used.

    weights_s: seconds per unit of each entry of `features`.
    extend_log_factor, decode_log_factor: log of upper bound over prediction, per regime.
    largest_extend_tokens: the largest prefill measured; beyond twice of it nothing is known.
    """

    weights_s: tuple[float, ...] = ()
    extend_log_factor: float = START_LOG_FACTOR
    decode_log_factor: float = START_LOG_FACTOR
    largest_extend_tokens: int = 0
    samples: int = 0

    @property
    def trained(self) -> bool:
        """False until enough iterations were measured to fit."""
        return bool(self.weights_s)

    def predict(self, shape: BatchShape) -> float:
        """Expected seconds of one iteration; 0.0 while untrained."""
        w = self.weights_s
        if not w:
            return 0.0
        tokens = shape.extend_tokens
        seconds = w[0] + w[8] * shape.decode_rows + w[10] * shape.decode_kv_tokens
        if shape.decode_rows > ROW_HINGE:
            seconds += w[9] * (shape.decode_rows - ROW_HINGE)
        if tokens:
            seconds += w[1] + w[2] * tokens + w[6] * shape.extend_pairs
            seconds += w[7] * shape.extend_square
            for i, hinge in enumerate(TOKEN_HINGES):
                if tokens > hinge:
                    seconds += w[3 + i] * (tokens - hinge)
        return seconds

    def upper(self, shape: BatchShape) -> float:
        """Seconds that one iteration stays below in the wanted share of cases."""
        factor = self.extend_log_factor if shape.has_extend else self.decode_log_factor
        return self.predict(shape) * math.exp(factor)


class StepTimeFitter:
    """Learns a `StepTimeModel` from measured iterations; `model` is always usable.

    Keeps the last `window` iterations of each regime, so that a long decode-only phase
    does not make it forget prefill; within a regime an iteration counts half as much as one
    `half_life` iterations younger. Refits every `refit_every` iterations.
    """

    def __init__(
        self,
        *,
        coverage: float = 0.95,
        window: int = 384,
        refit_every: int = 16,
        min_samples: int = 16,
        half_life: int = 96,
        learning_rate: float = 0.04,
    ) -> None:
        self._coverage = coverage
        self._refit_every = refit_every
        self._min_samples = min_samples
        self._half_life = half_life
        self._learning_rate = learning_rate
        self._extends: deque[tuple[tuple[float, ...], float]] = deque(maxlen=window)
        self._decodes: deque[tuple[tuple[float, ...], float]] = deque(maxlen=window)
        self._log_errors: deque[float] = deque(maxlen=window)
        self._since_fit = 0
        self.model = StepTimeModel()

    def observe(self, shape: BatchShape, seconds: float) -> None:
        """Learn from one finished iteration. Non-finite or non-positive times are ignored."""
        if not math.isfinite(seconds) or seconds <= 0.0:
            return
        self._calibrate(shape, seconds)
        samples = self._extends if shape.has_extend else self._decodes
        samples.append((features(shape), seconds))
        self.model = replace(
            self.model,
            samples=self.model.samples + 1,
            largest_extend_tokens=max(self.model.largest_extend_tokens, shape.extend_tokens),
        )
        self._since_fit += 1
        due = self._refit_every if self.model.trained else 1
        if self._since_fit >= due and self.model.samples >= self._min_samples:
            self._fit()

    def median_abs_error(self) -> float | None:
        """Median of |measured / predicted - 1| over the last window; None while untrained."""
        if not self._log_errors:
            return None
        return float(np.median(np.abs(np.expm1(np.asarray(self._log_errors)))))

    def _calibrate(self, shape: BatchShape, seconds: float) -> None:
        predicted = self.model.predict(shape)
        if predicted <= 0.0:
            return
        log_ratio = math.log(seconds / predicted)
        self._log_errors.append(log_ratio)
        if shape.has_extend:
            factor = self._follow(self.model.extend_log_factor, log_ratio)
            self.model = replace(self.model, extend_log_factor=factor)
        else:
            factor = self._follow(self.model.decode_log_factor, log_ratio)
            self.model = replace(self.model, decode_log_factor=factor)

    def _follow(self, log_factor: float, log_ratio: float) -> float:
        missed = log_ratio > log_factor
        step = self._coverage if missed else self._coverage - 1.0
        moved = log_factor + self._learning_rate * step
        return min(max(moved, MIN_LOG_FACTOR), MAX_LOG_FACTOR)

    def _fit(self) -> None:
        one_regime = not self._extends or not self._decodes
        if one_regime and self.model.samples < 4 * self._min_samples:
            return
        samples = [*self._extends, *self._decodes]
        ages = [*range(len(self._extends), 0, -1), *range(len(self._decodes), 0, -1)]
        recency = 0.5 ** (np.array(ages) / (2.0 * self._half_life))
        rows = np.array([row for row, _ in samples])
        seconds = np.array([value for _, value in samples])
        weighted = recency[:, None] * rows / seconds[:, None]
        scale = np.linalg.norm(weighted, axis=0)
        scale[scale == 0.0] = 1.0
        solution, _ = nnls(weighted / scale, recency)
        self.model = replace(self.model, weights_s=tuple((solution / scale).tolist()))
        self._since_fit = 0
