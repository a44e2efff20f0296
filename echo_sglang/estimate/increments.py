"""By how much online KV grew within a horizon, seen from past moments.

Online KV is taken as a step function of time: an observation holds until the next one. From an
origin t the increment is

    max over (t, t + horizon_s] of online KV, minus online KV at t, never negative.

Time here is time in which someone looked: a clock that jumps backwards adds nothing, and a
pause without observations counts as one horizon and one spacing of origins at most, because
nothing was decided in it and it should not push out what was learned.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class LookedTime:
    """Seconds in which someone looked, from readings of a clock that may jump."""

    __slots__ = ("_last_s", "_longest_pause_s", "elapsed_s")

    def __init__(self, *, longest_pause_s: float) -> None:
        self._longest_pause_s = longest_pause_s
        self._last_s: float | None = None
        self.elapsed_s = 0.0

    def advance(self, now_s: float) -> bool:
        """Read the clock. Returns False, and changes nothing, if `now_s` is not finite."""
        if not math.isfinite(now_s):
            return False
        if self._last_s is not None:
            self.elapsed_s += min(max(now_s - self._last_s, 0.0), self._longest_pause_s)
        self._last_s = now_s
        return True


class OpenOrigins(Generic[T]):
    """Origins whose horizon still runs, each with the highest KV since and a note of its own.

    Every call is O(1) amortised: a rising value melts the peaks below it into one.
    """

    __slots__ = ("_horizon_s", "_origins", "_peaks")

    def __init__(self, *, horizon_s: float) -> None:
        self._horizon_s = horizon_s
        self._origins: deque[tuple[float, int, T]] = deque()
        self._peaks: deque[tuple[int, int]] = deque()
        """(peak since, number of consecutive origins that share it); falling, oldest first."""

    def __len__(self) -> int:
        return len(self._origins)

    def open(self, at_s: float, tokens: int, note: T) -> None:
        """An origin at which `tokens` are held. Origins come in order of time."""
        self._origins.append((at_s, tokens, note))
        self._raise(tokens, 1)

    def observe(self, tokens: int) -> None:
        """Online KV is `tokens`, within the horizon of every open origin: `close` first."""
        self._raise(tokens, 0)

    def close(self, now_s: float) -> list[tuple[int, T]]:
        """(increment, note) of the origins whose horizon ended before `now_s`, in order."""
        known: list[tuple[int, T]] = []
        while self._origins and self._origins[0][0] + self._horizon_s < now_s:
            _, tokens, note = self._origins.popleft()
            peak, sharing = self._peaks.popleft()
            known.append((peak - tokens, note))
            if sharing > 1:
                self._peaks.appendleft((peak, sharing - 1))
        return known

    def _raise(self, tokens: int, new_origins: int) -> None:
        sharing = new_origins
        while self._peaks and self._peaks[-1][0] <= tokens:
            sharing += self._peaks.pop()[1]
        if sharing:
            self._peaks.append((tokens, sharing))


class HorizonIncrements:
    """Turns observations into increments: one origin at every multiple of `spacing_s` since the
    first observation, known as soon as its horizon is over.

    O(1) amortised a call however often it is called; memory is one entry per open origin, at
    most horizon_s / spacing_s + 2.
    """

    __slots__ = ("_held_tokens", "_next_origin", "_open", "_spacing_s", "_time")

    def __init__(self, *, horizon_s: float, spacing_s: float) -> None:
        self._spacing_s = spacing_s
        self._time = LookedTime(longest_pause_s=horizon_s + spacing_s)
        self._open: OpenOrigins[None] = OpenOrigins(horizon_s=horizon_s)
        self._held_tokens = 0
        self._next_origin = 0

    @property
    def num_open(self) -> int:
        """Origins whose horizon still runs."""
        return len(self._open)

    def observe(self, now_s: float, tokens: int) -> list[int]:
        """Online KV is `tokens` from now on; return the increments that became known, in order.

        A time that is not finite is ignored; tokens below zero count as zero.
        """
        if not self._time.advance(now_s):
            return []
        elapsed_s = self._time.elapsed_s
        while self._next_origin * self._spacing_s < elapsed_s:
            self._open.open(self._next_origin * self._spacing_s, self._held_tokens, None)
            self._next_origin += 1
        known = [increment for increment, _ in self._open.close(elapsed_s)]
        self._held_tokens = max(tokens, 0)
        self._open.observe(self._held_tokens)
        return known


class SlidingQuantile:
    """The last `size` values and any quantile of them; O(log size) compares a value."""

    __slots__ = ("_ordered", "_values")

    def __init__(self, size: int) -> None:
        self._values: deque[int] = deque(maxlen=size)
        self._ordered: list[int] = []

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: int) -> None:
        """Take a value in; the oldest goes once there are `size`."""
        if len(self._values) == self._values.maxlen:
            del self._ordered[bisect_left(self._ordered, self._values[0])]
        self._values.append(value)
        insort(self._ordered, value)

    def quantile(self, share: float) -> int:
        """The value of rank `conformal_rank`. Raises IndexError without values."""
        return self._ordered[conformal_rank(share, len(self._ordered)) - 1]


def conformal_rank(share: float, n: int) -> int:
    """ceil(share * (n + 1)), between 1 and n: of n + 1 exchangeable values the last one is not
    above the value of that rank with a probability of `share` or more (split conformal), as far
    as n values can tell."""
    return max(min(math.ceil(share * (n + 1)), n), 1)
