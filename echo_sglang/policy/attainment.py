"""Whether online requests got what they were promised."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from echo_sglang.policy.slack import SloSettings, first_token_deadline, next_token_deadline


@dataclass(slots=True, kw_only=True)
class OnlineProgress:
    """The times of one online request; `note` is called after every iteration it is in."""

    arrival_s: float
    ttft_slo_s: float
    tpot_slo_s: float
    first_token_s: float | None = None
    last_token_s: float | None = None
    tokens: int = 0

    def note(self, output_tokens: int, now_s: float) -> None:
        """`output_tokens` have been produced by `now_s`."""
        if output_tokens <= self.tokens:
            return
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.last_token_s = now_s
        self.tokens = output_tokens

    def next_deadline_s(self, slo: SloSettings) -> float:
        """When its next token must be computed."""
        if self.first_token_s is None:
            return first_token_deadline(self.arrival_s, self.ttft_slo_s, slo)
        return next_token_deadline(self.first_token_s, self.tokens, self.tpot_slo_s, slo)

    def decode_limits_s(
        self,
        slo: SloSettings,
        in_flight_end_s: float | None = None,
        online_share: float = 0.0,
    ) -> tuple[float, float]:
        """When the token is due that a decode step decided on now computes, and when the gap
        before it gets too long.

        in_flight_end_s: when the token before it comes, if that is still on its way; None if
        all tokens computed so far were noted. online_share: see `next_token_deadline`.
        """
        tpot_s, first_s = self.tpot_slo_s, self.first_token_s
        longest_gap_s = slo.max_gap_factor * tpot_s
        if in_flight_end_s is None:
            if first_s is None or self.last_token_s is None:
                return self.next_deadline_s(slo), math.inf
            due_s = next_token_deadline(first_s, self.tokens, tpot_s, slo, online_share)
            return due_s, self.last_token_s + longest_gap_s
        tokens = self.tokens + 1
        if first_s is None:
            first_s, tokens = in_flight_end_s, 1
        due_s = next_token_deadline(first_s, tokens, tpot_s, slo, online_share)
        return due_s, in_flight_end_s + longest_gap_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token; None before it."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first; None with fewer than two tokens."""
        if self.first_token_s is None or self.last_token_s is None or self.tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.tokens - 1)

    @property
    def attained(self) -> bool:
        """True if every SLO that applies was met."""
        ttft_s, tpot_s = self.ttft_s, self.tpot_s
        if ttft_s is None or ttft_s > self.ttft_slo_s:
            return False
        return tpot_s is None or tpot_s <= self.tpot_slo_s


class AttainmentWindow:
    """Share of online requests finished within the last `window_s` that met their SLOs."""

    __slots__ = ("_finished", "_met", "_window_s")

    def __init__(self, window_s: float = 60.0) -> None:
        self._window_s = window_s
        self._finished: deque[tuple[float, bool]] = deque()
        self._met = 0

    def finished(self, progress: OnlineProgress, now_s: float) -> bool:
        """Count one finished request; returns whether it attained its SLOs."""
        attained = progress.attained
        self._finished.append((now_s, attained))
        self._met += attained
        self._forget(now_s)
        return attained

    def counts(self, now_s: float) -> tuple[int, int]:
        """(finished, attained) within the window."""
        self._forget(now_s)
        return len(self._finished), self._met

    def _forget(self, now_s: float) -> None:
        while self._finished and self._finished[0][0] < now_s - self._window_s:
            self._met -= self._finished.popleft()[1]
