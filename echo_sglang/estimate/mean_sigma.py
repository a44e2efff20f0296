"""Reserves of the form mean + k * sigma, as in the Echo paper (arXiv 2504.03651): the baselines
that the other forecasts are compared with. A normal distribution is assumed by both, and online
KV has a heavier tail, so k has no fixed violation rate.
"""

from __future__ import annotations

import math
from collections import deque

from echo_sglang.estimate.increments import HorizonIncrements, LookedTime
from echo_sglang.estimate.kv_demand import MAX_SAMPLES, RowSource, enough_samples, nobody
from echo_sglang.estimate.settings import (
    require,
    require_horizon,
    require_limits,
    require_window,
)

ENOUGH_LEVELS = MAX_SAMPLES // 16


class SlidingMoments:
    """Mean and standard deviation of the last `size` integers, exact."""

    __slots__ = ("_squares", "_sum", "_values")

    def __init__(self, size: int) -> None:
        self._values: deque[int] = deque(maxlen=size)
        self._sum = 0
        self._squares = 0

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: int) -> None:
        """Take a value in; the oldest goes once there are `size`."""
        if len(self._values) == self._values.maxlen:
            oldest = self._values[0]
            self._sum -= oldest
            self._squares -= oldest * oldest
        self._values.append(value)
        self._sum += value
        self._squares += value * value

    def mean_plus(self, sigmas: float) -> float:
        """Mean + sigmas * (population) standard deviation. Raises ZeroDivisionError if empty."""
        n = len(self._values)
        variance = (n * self._squares - self._sum * self._sum) / (n * n)
        return self._sum / n + sigmas * math.sqrt(variance)


class MeanSigmaLevelReserve:
    """Online KV is expected to stay below mean + sigmas * sigma of the last `window_s`; the
    reserve is what of that is not locked yet.

    Until a sixteenth of the window was seen, the reserve is the ceiling. Raises ConfigError
    unless window_s > 0, sigmas >= 0 and 0 <= floor_tokens <= ceiling_tokens.
    """

    __slots__ = (
        "_ceiling_tokens",
        "_floor_tokens",
        "_held_tokens",
        "_levels",
        "_next_sample",
        "_sigmas",
        "_spacing_s",
        "_time",
    )

    def __init__(
        self, *, sigmas: float, window_s: float, floor_tokens: int, ceiling_tokens: int
    ) -> None:
        require_window(window_s)
        require_sigmas(sigmas)
        require_limits(floor_tokens, ceiling_tokens)
        self._spacing_s = window_s / MAX_SAMPLES
        self._time = LookedTime(longest_pause_s=self._spacing_s)
        self._levels = SlidingMoments(MAX_SAMPLES)
        self._next_sample = 0
        self._held_tokens = 0
        self._sigmas = sigmas
        self._floor_tokens = floor_tokens
        self._ceiling_tokens = ceiling_tokens

    def observe(self, now_s: float, online_tokens: int, running: RowSource = nobody) -> None:
        """See `KvDemandForecast`."""
        if not self._time.advance(now_s):
            return
        while self._next_sample * self._spacing_s < self._time.elapsed_s:
            self._levels.add(self._held_tokens)
            self._next_sample += 1
        self._held_tokens = max(online_tokens, 0)

    def reserve_tokens(self, now_s: float) -> int:
        """See `KvDemandForecast`."""
        if len(self._levels) < ENOUGH_LEVELS:
            return self._ceiling_tokens
        wanted = math.ceil(self._levels.mean_plus(self._sigmas)) - self._held_tokens
        return min(max(wanted, self._floor_tokens), self._ceiling_tokens)


class MeanSigmaGrowthReserve:
    """Mean + sigmas * sigma of the increments within `horizon_s` that the last `window_s` showed.

    Settings, sampling and warm-up as of `WindowQuantileReserve` at a quantile of 0.95.
    """

    __slots__ = ("_ceiling_tokens", "_enough", "_floor_tokens", "_increments", "_seen", "_sigmas")

    def __init__(
        self,
        *,
        horizon_s: float,
        sigmas: float,
        window_s: float,
        floor_tokens: int,
        ceiling_tokens: int,
    ) -> None:
        require_horizon(horizon_s, window_s)
        require_sigmas(sigmas)
        require_limits(floor_tokens, ceiling_tokens)
        spacing_s = window_s / MAX_SAMPLES
        self._increments = HorizonIncrements(horizon_s=horizon_s, spacing_s=spacing_s)
        self._seen = SlidingMoments(MAX_SAMPLES)
        self._sigmas = sigmas
        self._floor_tokens = floor_tokens
        self._ceiling_tokens = ceiling_tokens
        self._enough = enough_samples(horizon_s, spacing_s, 0.05)

    def observe(self, now_s: float, online_tokens: int, running: RowSource = nobody) -> None:
        """See `KvDemandForecast`."""
        for increment in self._increments.observe(now_s, online_tokens):
            self._seen.add(increment)

    def reserve_tokens(self, now_s: float) -> int:
        """See `KvDemandForecast`."""
        if len(self._seen) < self._enough:
            return self._ceiling_tokens
        wanted = math.ceil(self._seen.mean_plus(self._sigmas))
        return min(max(wanted, self._floor_tokens), self._ceiling_tokens)


def require_sigmas(sigmas: float) -> None:
    """Raises ConfigError unless it is finite and 0 or more."""
    require("sigmas", sigmas, 0.0 <= sigmas < math.inf, "a finite number, 0 or more")
