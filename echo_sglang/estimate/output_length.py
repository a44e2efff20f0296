"""How long outputs become, given what was produced already: a survival table per class.

Lengths of finished requests fall into bins, one token wide up to 16, an eighth of an octave
wide beyond. Kaplan and Meier's estimator turns them into survival, so a request that was cut
off by its `max_new_tokens` or aborted says only that it would have become longer. A request
weighs half as much as one `half_life` requests younger. Two pseudo-requests of a heavy-tailed
prior stay in: they answer before data is there, and beyond the longest output seen.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echo_sglang.domain.tag import ServiceClass
from echo_sglang.estimate.settings import require

Floats = NDArray[np.float64]

LONGEST_TOKENS = 1 << 20
UNIT_BINS = 16
BINS_PER_OCTAVE = 8
PRIOR_REQUESTS = 2.0
PRIOR_MEDIAN_TOKENS = 200.0
MAX_WEIGHT = 1e12


def bin_edges() -> tuple[int, ...]:
    """Ascending; bin i holds the lengths above edge i up to edge i + 1."""
    octaves = math.log2(LONGEST_TOKENS / UNIT_BINS)
    steps = range(1, round(octaves * BINS_PER_OCTAVE) + 1)
    wide = (round(UNIT_BINS * 2.0 ** (step / BINS_PER_OCTAVE)) for step in steps)
    return (*range(UNIT_BINS + 1), *wide)


EDGES = bin_edges()
_EDGES: Floats = np.array(EDGES, dtype=np.float64)
_NUM_BINS = len(EDGES) - 1


def _prior() -> tuple[Floats, float]:
    """Requests per bin and beyond the last: log-logistic, P(length > x) = 1 / (1 + x / median)."""
    survival = 1.0 / (1.0 + _EDGES / PRIOR_MEDIAN_TOKENS)
    return PRIOR_REQUESTS * -np.diff(survival), PRIOR_REQUESTS * float(survival[-1])


_PRIOR, _PRIOR_BEYOND = _prior()


class SurvivalTable:
    """Learns P(output > x tokens) of one class from finished requests.

    half_life: requests after which a request counts half. Raises ConfigError unless it is at
    least 1. Memory is fixed; `observe` is O(log bins), the first question after it O(bins).
    """

    __slots__ = ("_cut_off", "_ended", "_growth", "_log_survival", "_weight", "num_observed")

    def __init__(self, *, half_life: float = 1_000.0) -> None:
        allowed = "a finite number of requests, 1 or more"
        require("half_life", half_life, 1.0 <= half_life < math.inf, allowed)
        self._growth = 2.0 ** (1.0 / half_life)
        self._weight = 1.0
        self._ended: Floats = np.zeros(_NUM_BINS)
        self._cut_off: Floats = np.zeros(_NUM_BINS)
        self._log_survival: Floats | None = None
        self.num_observed = 0

    def observe(self, output_tokens: int, *, cut_off: bool = False) -> None:
        """A request ended after `output_tokens`; `cut_off` if it would have gone on (length
        limit, abort). Lengths below 1 are ignored, those above LONGEST_TOKENS are cut off."""
        if output_tokens < 1:
            return
        if output_tokens > LONGEST_TOKENS:
            output_tokens, cut_off = LONGEST_TOKENS, True
        self._weight *= self._growth
        counts = self._cut_off if cut_off else self._ended
        counts[bisect_left(EDGES, output_tokens) - 1] += self._weight
        self.num_observed += 1
        self._log_survival = None
        if self._weight > MAX_WEIGHT:
            self._ended /= self._weight
            self._cut_off /= self._weight
            self._weight = 1.0

    def log_survival(self, tokens: Floats | Sequence[float] | float) -> Floats:
        """log P(output > x) for every x of `tokens`; log-linear within a bin."""
        return np.asarray(np.interp(tokens, _EDGES, self._at_edges()))

    def remaining(self, produced_tokens: int, max_new_tokens: int, quantile: float) -> int:
        """Tokens that a request still produces with probability `quantile` at most.

        Given that it produced `produced_tokens` and goes on: at least 1, at most what
        `max_new_tokens` leaves; 0 if that is nothing. Raises ConfigError unless the quantile is
        above 0 and below 1.
        """
        require("quantile", quantile, 0.0 < quantile < 1.0, "above 0 and below 1")
        left = max_new_tokens - produced_tokens
        if left <= 0:
            return 0
        produced = max(produced_tokens, 0)
        wanted = float(self.log_survival(produced)) + math.log1p(-quantile)
        end = float(np.interp(-wanted, -self._at_edges(), _EDGES))
        return min(max(math.ceil(end - produced - 1e-9), 1), left)

    def _at_edges(self) -> Floats:
        if self._log_survival is None:
            ended = self._ended / self._weight + _PRIOR
            left = ended + self._cut_off / self._weight
            at_risk = np.cumsum(left[::-1])[::-1] + _PRIOR_BEYOND
            self._log_survival = np.append(0.0, np.cumsum(np.log1p(-ended / at_risk)))
        return self._log_survival


class OutputLengths:
    """One survival table per service class."""

    __slots__ = ("_tables",)

    def __init__(self, **table_settings: Any) -> None:
        self._tables = {each: SurvivalTable(**table_settings) for each in ServiceClass}

    def table(self, service_class: ServiceClass) -> SurvivalTable:
        """The table of a class; the same object always."""
        return self._tables[service_class]

    def observe(
        self, service_class: ServiceClass, output_tokens: int, *, cut_off: bool = False
    ) -> None:
        """See `SurvivalTable.observe`."""
        self._tables[service_class].observe(output_tokens, cut_off=cut_off)

    def remaining(
        self, service_class: ServiceClass, produced: int, max_new: int, quantile: float
    ) -> int:
        """See `SurvivalTable.remaining`."""
        return self._tables[service_class].remaining(produced, max_new, quantile)
