"""From errors to an upper bound: split-conformal offline, adaptive online.

Offline (Lei et al., arXiv 1604.04173): the bound multiplies a prediction by a quantile of
measured over predicted on iterations held out for this. Online (Gibbs and Candès, arXiv
2106.00170): every iteration above the bound raises it, every one below lowers it, so that the
wanted share is covered in the long run whatever the errors do. All factors are logs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_LOG_FACTOR = math.log(3.0)
START_LOG_FACTOR = math.log(1.3)
STEP_PER_SPREAD = 0.6
"""Size of a step, in mean absolute deviations of the log error."""
MIN_STEP, MAX_STEP = 0.002, 0.04
_MEMORY = 1.0 / 64.0


def split_log_factor(log_ratios: NDArray[np.float64], coverage: float) -> float:
    """The smallest factor that covers `coverage` of a new iteration; never below 1.

    log_ratios: log(measured / predicted) of held-out iterations, at least one.
    """
    n = len(log_ratios)
    rank = min(math.ceil((n + 1) * coverage), n)
    return min(max(float(np.sort(log_ratios)[rank - 1]), 0.0), MAX_LOG_FACTOR)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveFactor:
    """A factor that follows the wanted coverage.

    spread: running mean of |log error|, which sets how far one iteration moves it.
    """

    coverage: float
    log_factor: float = START_LOG_FACTOR
    spread: float = MAX_STEP / STEP_PER_SPREAD

    def following(self, log_ratio: float) -> AdaptiveFactor:
        """The factor after one iteration whose log(measured / predicted) is `log_ratio`."""
        size = min(max(STEP_PER_SPREAD * self.spread, MIN_STEP), MAX_STEP)
        missed = log_ratio > self.log_factor
        moved = self.log_factor + size * (self.coverage if missed else self.coverage - 1.0)
        error = min(abs(log_ratio), MAX_LOG_FACTOR)
        return AdaptiveFactor(
            coverage=self.coverage,
            log_factor=min(max(moved, 0.0), MAX_LOG_FACTOR),
            spread=self.spread + _MEMORY * (error - self.spread),
        )
