"""How many online prompt tokens tend to arrive together, and what they took of late."""

from __future__ import annotations

import math
from collections import deque

WINDOW_S = 0.5


class BurstEstimate:
    """Learns a high quantile of the prompt tokens that arrive within half a second.

    Counted per arrival, so a quantile of 0.9 is the backlog that nine of ten arrivals see
    no more than, themselves included.
    """

    __slots__ = ("_bursts", "_cached", "_quantile", "_recent", "_recent_tokens")

    def __init__(self, *, quantile: float = 0.9, memory: int = 128) -> None:
        self._quantile = quantile
        self._recent: deque[tuple[float, int]] = deque()
        self._recent_tokens = 0
        self._bursts: deque[int] = deque(maxlen=memory)
        self._cached = 0

    def observe(self, now_s: float, prompt_tokens: int) -> None:
        """An online request with this many uncached prompt tokens arrived."""
        self._recent.append((now_s, prompt_tokens))
        self._recent_tokens += prompt_tokens
        while self._recent[0][0] < now_s - WINDOW_S:
            self._recent_tokens -= self._recent.popleft()[1]
        self._bursts.append(self._recent_tokens)
        ordered = sorted(self._bursts)
        self._cached = ordered[min(int(self._quantile * len(ordered)), len(ordered) - 1)]

    @property
    def tokens(self) -> int:
        """The learned burst; 0 before the first arrival."""
        return self._cached


class OnlineShare:
    """The share of the time lately in which the prompts computed were those of online requests.

    An average over time that forgets: what was `memory_s` ago counts 1/e.
    """

    __slots__ = ("_last", "_last_s", "_memory_s", "_share")

    def __init__(self, *, memory_s: float = 8.0) -> None:
        self._memory_s = memory_s
        self._share = self._last = 0.0
        self._last_s: float | None = None

    def decided(self, now_s: float, chunk_tokens: int, offline_tokens: int) -> None:
        """From now on an iteration computes so many prompt tokens, some of offline requests."""
        passed_s = 0.0 if self._last_s is None else max(now_s - self._last_s, 0.0)
        kept = math.exp(-passed_s / self._memory_s)
        self._share = self._share * kept + self._last * (1.0 - kept)
        self._last_s = now_s
        self._last = 1.0 - offline_tokens / chunk_tokens if chunk_tokens else 0.0

    @property
    def share(self) -> float:
        """From 0 to 1, as of the last decision."""
        return self._share
