"""Checks of what estimators are told."""

from __future__ import annotations

import math

from echo_sglang.errors import ConfigError


def require(name: str, value: float, holds: bool, allowed: str) -> None:
    """Raises ConfigError naming the setting, its value and what is allowed."""
    if not holds:
        raise ConfigError(f"{name} {value}: allowed is {allowed}")


def require_window(window_s: float) -> None:
    """Raises ConfigError unless it is finite and above 0."""
    require("window_s", window_s, 0.0 < window_s < math.inf, "a finite number above 0")


def require_horizon(horizon_s: float, window_s: float) -> None:
    """Raises ConfigError unless both are finite and 0 < horizon_s <= window_s."""
    require_window(window_s)
    allowed = f"above 0 and at most the window of {window_s:g} s"
    require("horizon_s", horizon_s, 0.0 < horizon_s <= window_s, allowed)


def require_limits(floor_tokens: int, ceiling_tokens: int) -> None:
    """Raises ConfigError unless 0 <= floor_tokens <= ceiling_tokens."""
    require("floor_tokens", floor_tokens, floor_tokens >= 0, "0 or more")
    allowed = f"the floor of {floor_tokens} tokens or more; raise it or lower the floor"
    require("ceiling_tokens", ceiling_tokens, ceiling_tokens >= floor_tokens, allowed)
