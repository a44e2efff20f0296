"""How much slower online requests may get by offline work: a budget instead of an SLO.

Offline work delays an online request in two ways. It makes the iterations longer in which its
rows decode; and a request that arrives while an iteration runs waits for its end. Two accounts
are credited with what is allowed as time passes, and charged with what was caused:

    tokens   a share of what the decode steps of online rows take alone; charged with what
             iterations beside them took longer. Prefill of other online requests, which makes
             tokens late too, is no reason for a larger credit: a longer decode step meets as
             many more of them as it is longer.
    waits    a share of the time to first token, for every second; charged with half the square
             of an iteration's length: requests that arrive at any moment wait so much for it,
             all in all. Where the next iteration is decided before one ends, they wait for
             that one too, which is a whole square more.

Neither account saves up more than its window earns, so no stretch of time pays for another.
The goal is Valve's (arXiv 2604.07874): first tokens at most 5 % later, others at most 2 %.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median

from echo_sglang.domain.snapshot import ImpactRoom
from echo_sglang.estimate.fine_times import FineFitter

TPOT_IMPACT_SHARE = 0.4
"""How much later other tokens may come, as a share of how much later first tokens may."""

NUM_FIRST_TOKENS = 101
"""The last first tokens, whose median is what a share of is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpactSettings:
    """ttft, tpot: how much later a token may come, as a share of its time without offline work.

    ttft_margin, tpot_margin: shares of them that are planned with; quantiles stray from the mean.
    tokens_window_s: decode time whose credit is saved up, or owed, at most: short beside an
    answer, so that no answer pays for others.
    waits_window_s: the same of waiting, which is spent in stretches while nobody is online; a
    stretch begins when `stretch` of it is saved and ends when nothing is left.
    memory_s: waiting caused so long ago counts 1/e in what the mean first token waited.
    unknown_ttft_s: time to first token without offline work, before any was measured.
    step_factor: how many times the tpot share one iteration may take longer.
    """

    ttft: float
    tpot: float
    ttft_margin: float = 0.96
    tpot_margin: float = 0.94
    tokens_window_s: float = 0.5
    waits_window_s: float = 30.0
    stretch: float = 0.2
    memory_s: float = 60.0
    unknown_ttft_s: float = 0.05
    step_factor: float = 1.5

    def __post_init__(self) -> None:
        assert self.ttft > 0.0 and self.tpot > 0.0
        assert 0.0 < self.ttft_margin <= 1.0 and 0.0 < self.tpot_margin <= 1.0
        assert 0.0 < self.stretch < 1.0
        assert self.tokens_window_s > 0.0 and self.waits_window_s > 0.0 and self.memory_s > 0.0
        assert self.unknown_ttft_s > 0.0 and self.step_factor >= 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepImpact:
    """One iteration as the account sees it.

    alone_s: what its online part would have taken, 0.0 without one; decode_s: what the online
    rows that decode would have taken without any prefill, 0.0 without them. decided_ahead: the
    iteration after it was decided before it ended.
    """

    seconds: float
    alone_s: float = 0.0
    decode_s: float = 0.0
    decided_ahead: bool = False

    def __post_init__(self) -> None:
        assert self.seconds >= 0.0 and self.alone_s >= 0.0 and self.decode_s >= 0.0

    @property
    def waits_s2(self) -> float:
        """What arrivals at any moment wait for its offline part, seconds squared."""
        alone_s = min(self.alone_s, self.seconds)
        squares = self.seconds * self.seconds - alone_s * alone_s
        return (1.5 if self.decided_ahead else 0.5) * squares

    @property
    def longer_s(self) -> float:
        """How much longer online rows waited for their token; 0.0 if none decoded."""
        return max(self.seconds - self.alone_s, 0.0) if self.decode_s else 0.0


class ImpactAccount:
    """Delay that was allowed and delay that was caused.

    It begins with nothing: no offline work runs until something was allowed.
    fitter: learns what iterations take, finely enough to tell what offline work adds.
    """

    def __init__(self, settings: ImpactSettings) -> None:
        self._settings = settings
        self._now_s: float | None = None
        self._tokens_s = 0.0
        self._waits_s2 = 0.0
        self._in_stretch = False
        self._recent_s = 0.0
        self._recent_waits_s2 = 0.0
        self._ttfts_s: deque[float] = deque(maxlen=NUM_FIRST_TOKENS)
        self._median_ttft_s = 0.0
        self.fitter = FineFitter()

    def step(self, now_s: float, step: StepImpact) -> None:
        """An iteration ended at `now_s`."""
        self._advance(now_s)
        self._waits_s2 -= step.waits_s2
        self._recent_waits_s2 += step.waits_s2
        settings = self._settings
        share = settings.tpot_margin * settings.tpot
        self._tokens_s += share * step.decode_s - step.longer_s
        self._tokens_s = min(self._tokens_s, share * settings.tokens_window_s)

    def first_token(self, ttft_s: float) -> None:
        """An online request got its first token `ttft_s` after its arrival."""
        assert ttft_s >= 0.0
        self._ttfts_s.append(ttft_s)
        self._median_ttft_s = median(self._ttfts_s)

    @property
    def expected_wait_s(self) -> float:
        """How much longer than without offline work a request waits that arrives at any time."""
        return self._recent_waits_s2 / self._recent_s if self._recent_s else 0.0

    @property
    def ttft_alone_s(self) -> float:
        """What the first token would take without offline work, typically."""
        if not self._ttfts_s:
            return self._settings.unknown_ttft_s
        return max(self._median_ttft_s - self.expected_wait_s, 0.0)

    def room(self, now_s: float) -> ImpactRoom:
        """What may be spent now. Changes the account by the time that passed, and by whether a
        stretch begins or ends."""
        self._advance(now_s)
        settings = self._settings
        share = settings.tpot_margin * settings.tpot
        most_s2 = self._waits_per_s * settings.waits_window_s
        enough_s2 = 0.0 if self._in_stretch else settings.stretch * most_s2
        self._in_stretch = self._waits_s2 > enough_s2
        may_stay = self._tokens_s > -share * settings.tokens_window_s and self._waits_s2 > -most_s2
        return ImpactRoom(
            waits_s2=most_s2 if self._in_stretch else 0.0,
            longer_share=settings.step_factor * share if may_stay else 0.0,
            begins=self._tokens_s > 0.0 and self._waits_s2 > 0.0,
            times_s=() if self.fitter.times is None else self.fitter.times.weights_s,
        )

    @property
    def _waits_per_s(self) -> float:
        """Seconds squared of waiting that every second allows."""
        settings = self._settings
        return settings.ttft_margin * settings.ttft * self.ttft_alone_s

    def _advance(self, now_s: float) -> None:
        if self._now_s is None:
            self._now_s = now_s
        passed_s = max(now_s - self._now_s, 0.0)
        if not passed_s:
            return
        self._now_s = now_s
        settings = self._settings
        kept = math.exp(-passed_s / settings.memory_s)
        self._recent_s = self._recent_s * kept + settings.memory_s * (1.0 - kept)
        self._recent_waits_s2 *= kept
        most_s2 = self._waits_per_s * settings.waits_window_s
        self._waits_s2 = min(self._waits_s2 + self._waits_per_s * passed_s, most_s2)
