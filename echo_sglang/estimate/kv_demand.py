"""How many more KV tokens online requests will lock before offline work can give them back.

The answer is the burst reserve: offline work leaves that much of the pool alone. A forecast is
fed the KV that running online requests lock, every iteration, and is asked for the reserve.
"""

from __future__ import annotations

import math
from typing import Protocol

from echo_sglang.errors import ConfigError
from echo_sglang.estimate.increments import HorizonIncrements, SlidingQuantile

MAX_SAMPLES = 1024
"""Increments kept: a 0.999 quantile still has one value above it."""

WARM_UP_HORIZONS = 4
"""Horizons that must have been seen whole before a quantile of them is believed."""


class KvDemandForecast(Protocol):
    """Forecasts additional online KV tokens within a reclaim horizon. Times are seconds on one
    clock, which may jump; no method raises once the object exists."""

    def observe(self, now_s: float, online_tokens: int) -> None:
        """Running online requests lock `online_tokens` KV tokens from now on. Cheap enough for
        every iteration: O(1) amortised beside one insertion per sampled moment."""
        ...

    def reserve_tokens(self, now_s: float) -> int:
        """Tokens to keep free for online growth; between the floor and the ceiling. Changes
        nothing; valid until the next observation."""
        ...


class FixedReserve:
    """Always the same reserve. Raises ConfigError for `tokens` below zero."""

    __slots__ = ("_tokens",)

    def __init__(self, tokens: int) -> None:
        require("reserve_tokens", tokens, tokens >= 0, "0 or more")
        self._tokens = tokens

    def observe(self, now_s: float, online_tokens: int) -> None:
        """Nothing to learn."""

    def reserve_tokens(self, now_s: float) -> int:
        """The tokens it was made with."""
        return self._tokens


class WindowQuantileReserve:
    """A quantile of the increments within `horizon_s` that the last `window_s` showed.

    Increments are defined in `increments`, sampled at MAX_SAMPLES evenly spaced moments of the
    window. Until WARM_UP_HORIZONS horizons (or the whole window, if that is shorter) and
    1 / (1 - quantile) increments were seen, the reserve is the ceiling.

    horizon_s, window_s: seconds, 0 < horizon_s <= window_s. quantile: above 0, at most 0.999.
    floor_tokens, ceiling_tokens: the reserve stays between them. Raises ConfigError otherwise.
    """

    __slots__ = ("_ceiling_tokens", "_enough", "_floor_tokens", "_increments", "_quantile", "_seen")

    def __init__(
        self,
        *,
        horizon_s: float,
        quantile: float,
        window_s: float,
        floor_tokens: int,
        ceiling_tokens: int,
    ) -> None:
        require_horizon(horizon_s, window_s)
        require("quantile", quantile, 0.0 < quantile <= 0.999, "above 0 and at most 0.999")
        require_limits(floor_tokens, ceiling_tokens)
        spacing_s = window_s / MAX_SAMPLES
        self._increments = HorizonIncrements(horizon_s=horizon_s, spacing_s=spacing_s)
        self._seen = SlidingQuantile(MAX_SAMPLES)
        self._quantile = quantile
        self._floor_tokens = floor_tokens
        self._ceiling_tokens = ceiling_tokens
        self._enough = enough_samples(horizon_s, spacing_s, quantile)

    def observe(self, now_s: float, online_tokens: int) -> None:
        """See `KvDemandForecast`."""
        for increment in self._increments.observe(now_s, online_tokens):
            self._seen.add(increment)

    def reserve_tokens(self, now_s: float) -> int:
        """See `KvDemandForecast`."""
        if len(self._seen) < self._enough:
            return self._ceiling_tokens
        wanted = self._seen.quantile(self._quantile)
        return min(max(wanted, self._floor_tokens), self._ceiling_tokens)


def enough_samples(horizon_s: float, spacing_s: float, quantile: float) -> int:
    """Increments to wait for: WARM_UP_HORIZONS of time and one expected beyond the quantile."""
    of_time = math.ceil(WARM_UP_HORIZONS * horizon_s / spacing_s)
    beyond_quantile = math.ceil(1.0 / (1.0 - quantile))
    return min(max(of_time, beyond_quantile), MAX_SAMPLES)


def require_horizon(horizon_s: float, window_s: float) -> None:
    """Raises ConfigError unless both are finite and 0 < horizon_s <= window_s."""
    require("window_s", window_s, 0.0 < window_s < math.inf, "a finite number above 0")
    allowed = f"above 0 and at most the window of {window_s:g} s"
    require("horizon_s", horizon_s, 0.0 < horizon_s <= window_s, allowed)


def require_limits(floor_tokens: int, ceiling_tokens: int) -> None:
    """Raises ConfigError unless 0 <= floor_tokens <= ceiling_tokens."""
    require("floor_tokens", floor_tokens, floor_tokens >= 0, "0 or more")
    allowed = f"the floor of {floor_tokens} tokens or more; raise it or lower the floor"
    require("ceiling_tokens", ceiling_tokens, ceiling_tokens >= floor_tokens, allowed)


def require(name: str, value: float, holds: bool, allowed: str) -> None:
    """Raises ConfigError naming the setting, its value and what is allowed."""
    if not holds:
        raise ConfigError(f"{name} {value}: allowed is {allowed}")
