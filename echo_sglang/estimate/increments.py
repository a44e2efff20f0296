"""By how much online KV grew within a horizon, seen from evenly spaced past moments.

Online KV is taken as a step function of time: an observation holds until the next one. At
every multiple of `spacing_s` since the first observation stands an origin t; its increment is

    max over (t, t + horizon_s] of online KV, minus online KV at t, never negative.

Time here is time in which someone looked: a clock that jumps backwards adds nothing, and a
pause without observations counts as one horizon and one spacing at most, because nothing was
decided in it and it should not push out what was learned.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque


class HorizonIncrements:
    """Turns observations into increments, each as soon as its horizon is over.

    O(1) amortised a call however often it is called; memory is one entry per origin whose
    horizon still runs, at most horizon_s / spacing_s + 2.
    """

    __slots__ = (
        "_elapsed_s",
        "_first_origin",
        "_held_tokens",
        "_horizon_s",
        "_last_s",
        "_next_origin",
        "_origins",
        "_peaks",
        "_spacing_s",
    )

    def __init__(self, *, horizon_s: float, spacing_s: float) -> None:
        self._horizon_s = horizon_s
        self._spacing_s = spacing_s
        self._last_s: float | None = None
        self._elapsed_s = 0.0
        self._held_tokens = 0
        self._origins: deque[int] = deque()
        self._first_origin = 0
        self._next_origin = 0
        self._peaks: deque[tuple[int, int]] = deque()
        """(peak since, number of consecutive origins that share it); falling, oldest first."""

    def observe(self, now_s: float, tokens: int) -> list[int]:
        """Online KV is `tokens` from now on; return the increments that became known, in order.

        A time that is not finite is ignored; tokens below zero count as zero.
        """
        if not math.isfinite(now_s):
            return []
        tokens = max(tokens, 0)
        if self._last_s is not None:
            longest_s = self._horizon_s + self._spacing_s
            self._elapsed_s += min(max(now_s - self._last_s, 0.0), longest_s)
            self._open_origins()
        known = self._close_origins()
        self._last_s = now_s
        self._held_tokens = tokens
        self._raise_peaks(tokens, 0)
        return known

    def _open_origins(self) -> None:
        while self._next_origin * self._spacing_s < self._elapsed_s:
            self._origins.append(self._held_tokens)
            self._raise_peaks(self._held_tokens, 1)
            self._next_origin += 1

    def _close_origins(self) -> list[int]:
        known = []
        while (
            self._origins
            and self._first_origin * self._spacing_s + self._horizon_s < self._elapsed_s
        ):
            peak, sharing = self._peaks[0]
            known.append(peak - self._origins.popleft())
            self._first_origin += 1
            if sharing == 1:
                self._peaks.popleft()
            else:
                self._peaks[0] = (peak, sharing - 1)
        return known

    def _raise_peaks(self, tokens: int, new_origins: int) -> None:
        sharing = new_origins
        while self._peaks and self._peaks[-1][0] <= tokens:
            sharing += self._peaks.pop()[1]
        if sharing:
            self._peaks.append((tokens, sharing))


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
        """The value of rank ceil(share * (n + 1)), at most n: of n + 1 exchangeable values the
        last one is not above it with a probability of `share` or more (split conformal), as
        far as n values can tell. Raises IndexError without values.
        """
        n = len(self._ordered)
        rank = min(math.ceil(share * (n + 1)), n)
        return self._ordered[max(rank, 1) - 1]
