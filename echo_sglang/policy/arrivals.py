"""How many online prompt tokens tend to arrive together."""

from __future__ import annotations

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
