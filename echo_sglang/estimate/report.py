"""How good predictions were: the figures that are always published, per regime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegimeReport:
    """Errors of predictions over `samples` iterations; shares and relative errors, no percents.

    regime: "extend", "decode", "mixed" or "overall".
    p50_error to p99_error: quantiles of |predicted / measured - 1|.
    signed_bias: mean of predicted / measured - 1; positive predicts too long.
    under_prediction_rate: share of iterations that took longer than predicted.
    coverage: share that took no longer than the upper bound.
    drift_ratio: median of measured / predicted.
    """

    regime: str
    samples: int
    p50_error: float
    p90_error: float
    p95_error: float
    p99_error: float
    signed_bias: float
    under_prediction_rate: float
    coverage: float
    drift_ratio: float


def report_on(regime: str, predicted_s: Array, upper_s: Array, measured_s: Array) -> RegimeReport:
    """The report of at least one iteration; all arrays have shape (n,)."""
    relative = predicted_s / measured_s - 1.0
    p50, p90, p95, p99 = np.quantile(np.abs(relative), (0.5, 0.9, 0.95, 0.99))
    return RegimeReport(
        regime=regime,
        samples=len(measured_s),
        p50_error=float(p50),
        p90_error=float(p90),
        p95_error=float(p95),
        p99_error=float(p99),
        signed_bias=float(relative.mean()),
        under_prediction_rate=float((measured_s > predicted_s).mean()),
        coverage=float((measured_s <= upper_s).mean()),
        drift_ratio=float(np.median(measured_s / predicted_s)),
    )
