"""Whether a step-time model may still be trusted: drift, missing times, safe mode."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from echo_sglang.domain.batch import Regime
from echo_sglang.estimate.report import RegimeReport, report_on


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimeStatus:
    """What is known of a live model. regimes: only those with measured predictions.

    drift_ratio: the worst regime's measured over predicted time, or its inverse if that is
    larger: 1.0 is no drift. None before there is anything to compare.
    safe_mode: why the model is not to be relied on; None while it is.
    """

    regimes: tuple[RegimeReport, ...]
    drift_ratio: float | None
    safe_mode: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """Bounds of trust.

    drift_bound: median of measured over predicted, or its inverse, that ends trust.
    recovered_bound: the same, below which trust returns.
    recent: iterations of a regime that the median is taken over, once half of them are there.
    mature: iterations of a regime, at most `window`, before its drift counts: a server that
    learns from nothing is wrong at first, which is no reason to learn again from the start.
    max_missing: iterations in a row without a usable time that end trust, and usable ones
    that restore it.
    window: iterations of a regime that the status is about.
    """

    drift_bound: float = 1.75
    recovered_bound: float = 1.3
    recent: int = 32
    mature: int = 0
    max_missing: int = 8
    window: int = 256

    def __post_init__(self) -> None:
        assert 1.0 < self.recovered_bound < self.drift_bound
        assert 0 <= self.mature <= self.window


class _Outcome(NamedTuple):
    predicted_s: float
    upper_s: float
    measured_s: float


class Health:
    """Follows predictions against measurements. `safe_mode` is the reason, None while well."""

    def __init__(self, settings: HealthSettings) -> None:
        self._settings = settings
        self._outcomes: dict[Regime, deque[_Outcome]] = {
            regime: deque(maxlen=settings.window) for regime in Regime
        }
        self._logs: dict[Regime, deque[float]] = {
            regime: deque(maxlen=settings.recent) for regime in Regime
        }
        self._drift: dict[Regime, float] = {}
        self._missing = self._usable = 0
        self._no_times: str | None = None
        self._drifted: str | None = None

    @property
    def safe_mode(self) -> str | None:
        """Why the model must not be relied on now."""
        return self._no_times or self._drifted

    def missed(self, seconds: float) -> None:
        """An iteration ended with a time that cannot be."""
        self._missing += 1
        self._usable = 0
        if self._missing >= self._settings.max_missing:
            self._no_times = f"stale: {self._missing} iterations without a usable time ({seconds})"

    def measured(self) -> None:
        """An iteration ended with a usable time."""
        self._usable += 1
        if self._usable >= self._settings.max_missing:
            self._no_times = None
        self._missing = 0

    def compared(
        self, regime: Regime, predicted_s: float, upper_s: float, measured_s: float
    ) -> float | None:
        """A prediction met its measurement.

        If this ends trust, how many times as long iterations take as predicted; else None.
        """
        self._outcomes[regime].append(_Outcome(predicted_s, upper_s, measured_s))
        logs = self._logs[regime]
        logs.append(math.log(measured_s / predicted_s))
        known = len(self._outcomes[regime]) >= self._settings.mature
        if 2 * len(logs) < self._settings.recent or not known:
            return None
        self._drift[regime] = math.exp(sorted(logs)[len(logs) // 2])
        ratio = self._drift[regime]
        if self._drifted is None:
            if max(ratio, 1.0 / ratio) <= self._settings.drift_bound:
                return None
            self._drifted = f"drift: {regime} iterations take {ratio:.2f} times what is predicted"
            return ratio
        if self._worst() <= self._settings.recovered_bound:
            self._drifted = None
        return None

    def drifting(self, regime: Regime, ratio: float) -> int:
        """How many of the newest iterations in a row are off by more than half of `ratio`."""
        count, half = 0, 0.5 * math.log(ratio)
        for log in reversed(self._logs[regime]):
            if log * half <= half * half:
                break
            count += 1
        return count

    def forget_drift(self) -> None:
        """The model was fitted anew: what its predecessor missed says nothing of it."""
        for logs in self._logs.values():
            logs.clear()
        self._drift.clear()

    def status(self) -> StepTimeStatus:
        """A summary of the last window of each regime."""
        reports = [
            report_on(regime.value, *np.array(outcomes).T)
            for regime, outcomes in self._outcomes.items()
            if outcomes
        ]
        return StepTimeStatus(
            regimes=tuple(reports),
            drift_ratio=self._worst() if self._drift else None,
            safe_mode=self.safe_mode,
        )

    def median_abs_error(self) -> float | None:
        """Median of |predicted / measured - 1| over all windows; None before the first."""
        errors = [
            abs(outcome.predicted_s / outcome.measured_s - 1.0)
            for outcomes in self._outcomes.values()
            for outcome in outcomes
        ]
        return float(np.median(errors)) if errors else None

    def _worst(self) -> float:
        return max(max(ratio, 1.0 / ratio) for ratio in self._drift.values())
