"""Completion windows: "24h" as OpenAI has it, and any other time as a real deadline."""

from __future__ import annotations

import re

from echo_sglang.service.errors import InvalidInputError

MIN_WINDOW_S = 60
MAX_WINDOW_S = 30 * 86_400

_WINDOW = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_UNIT_S = {"m": 60, "h": 3_600, "d": 86_400}


def window_s(text: str) -> float:
    """Seconds of a window such as "90m", "24h" or "7d". Raises InvalidInputError."""
    found = _WINDOW.fullmatch(text)
    seconds = int(found[1]) * _UNIT_S[found[2]] if found else 0
    if not MIN_WINDOW_S <= seconds <= MAX_WINDOW_S:
        raise InvalidInputError(
            "completion_window",
            f"{text[:40]!r} is not a window; write minutes, hours or days, from 1m to 30d, "
            'such as "90m", "24h" or "7d"',
        )
    return float(seconds)
