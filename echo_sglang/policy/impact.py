"""How much slower online requests may get by offline work: a budget instead of an SLO.

Offline work delays an online request in two ways. It makes the iterations longer that compute
its tokens; and a request that arrives while an iteration runs waits for its end. The first is
measured against what the iteration would have taken without offline work, as the step-time model
predicts it. The second is, for arrivals at any moment, half the square of an iteration's length
over the time that passed: iterations of 20 ms one after the other delay by 10 ms on average.

The goal is Valve's (arXiv 2604.07874): first tokens at most 5 % later, others at most 2 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.snapshot import ImpactRoom, Snapshot
from echo_sglang.estimate.step_time import StepTimeModel

IDLE_FACTOR = 2.0

TPOT_IMPACT_SHARE = 0.4
"""How much later other tokens may come, as a share of how much later first tokens may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpactSettings:
    """ttft, tpot: how much later a token may come, as a share of its time without offline work.

    margin: share of that which is planned with.
    window_s: what happened so many seconds ago counts 1/e of what happens now.
    band: offline work stops when this share more than allowed was spent and starts again when
    this share is left: in stretches, not iteration by iteration.
    unknown_ttft_s: time to first token without offline work, before any was measured.
    step_factor: how many times the tpot share one iteration may take, so that no request pays
    for all.
    """

    ttft: float
    tpot: float
    margin: float = 0.8
    window_s: float = 30.0
    band: float = 0.2
    unknown_ttft_s: float = 0.1
    step_factor: float = 2.0

    def __post_init__(self) -> None:
        assert self.ttft > 0.0 and self.tpot > 0.0
        assert 0.0 < self.margin <= 1.0 and 0.0 < self.band < 1.0
        assert self.window_s > 0.0 and self.unknown_ttft_s > 0.0 and self.step_factor >= 1.0


class ImpactAccount:
    """Delay that was allowed and delay that was caused, both fading with age.

    It begins with nothing: no offline work runs until something was allowed.
    """

    def __init__(self, settings: ImpactSettings) -> None:
        self._settings = settings
        self._now_s: float | None = None
        self._elapsed_s = 0.0
        self._waits_s2 = 0.0
        self._alone_s = 0.0
        self._longer_s = 0.0
        self._ttft_s = 0.0
        self._ttft_weight = 0.0
        self._open = False

    def step(self, now_s: float, seconds: float, alone_s: float) -> None:
        """An iteration ended at `now_s`. alone_s: what its online part would have taken.

        alone_s is 0.0 for one without online requests.
        """
        assert seconds >= 0.0 and alone_s >= 0.0
        self._advance(now_s)
        alone_s = min(alone_s, seconds)
        self._waits_s2 += 0.5 * (seconds * seconds - alone_s * alone_s)
        if alone_s > 0.0:
            self._alone_s += alone_s
            self._longer_s += seconds - alone_s

    def first_token(self, ttft_s: float) -> None:
        """An online request got its first token `ttft_s` after its arrival."""
        assert ttft_s >= 0.0
        self._ttft_s += ttft_s
        self._ttft_weight += 1.0

    @property
    def expected_wait_s(self) -> float:
        """How much longer than without offline work a request waits that arrives at any time."""
        return self._waits_s2 / self._elapsed_s if self._elapsed_s else 0.0

    @property
    def ttft_alone_s(self) -> float:
        """What the first token would take without offline work."""
        if not self._ttft_weight:
            return self._settings.unknown_ttft_s
        return max(self._ttft_s / self._ttft_weight - self.expected_wait_s, 0.0)

    @property
    def longer_share(self) -> float:
        """How much longer iterations with online requests took, as a share of their time alone."""
        return self._longer_s / self._alone_s if self._alone_s else 0.0

    def room(self, now_s: float) -> ImpactRoom:
        """What may be spent now. Changes the account only by the time that passed."""
        self._advance(now_s)
        settings = self._settings
        allowed_s2 = settings.margin * settings.ttft * self.ttft_alone_s * self._elapsed_s
        allowed_s = settings.margin * settings.tpot * self._alone_s
        waits = _share_left(allowed_s2, self._waits_s2)
        longer = _share_left(allowed_s, self._longer_s) if self._alone_s else waits
        least = min(waits, longer)
        self._open = least > (-settings.band if self._open else settings.band)
        if not self._open:
            return ImpactRoom()
        return ImpactRoom(
            # The last iteration before the end of a stretch may go beyond it.
            waits_s2=allowed_s2 * (1.0 + 2.0 * settings.band) - self._waits_s2,
            longer_share=settings.step_factor * settings.margin * settings.tpot,
        )

    def _advance(self, now_s: float) -> None:
        if self._now_s is None:
            self._now_s = now_s
        passed_s = max(now_s - self._now_s, 0.0)
        if not passed_s:
            return
        self._now_s = now_s
        window_s = self._settings.window_s
        kept = math.exp(-passed_s / window_s)
        self._elapsed_s = self._elapsed_s * kept + window_s * (1.0 - kept)
        self._waits_s2 *= kept
        self._alone_s *= kept
        self._longer_s *= kept
        # First tokens are rare: they fade ten times as slowly.
        slowly = kept**0.1
        self._ttft_s *= slowly
        self._ttft_weight *= slowly


def impact_budget(
    snapshot: Snapshot, model: StepTimeModel, online_work: Sequence[tuple[int, int]] = ()
) -> float:
    """Longest iteration that the snapshot's room allows, with these online prompts computed.

    online_work: (tokens to compute, tokens before them). While nobody is online an iteration
    takes at most IDLE_FACTOR times a decode step of one row: what it advances beyond its fixed
    cost grows with its length, what arrivals wait for it grows with its square.
    """
    assert snapshot.impact is not None
    alone = BatchShape(decode_rows=snapshot.online.rows, decode_kv_tokens=snapshot.online.kv_tokens)
    for tokens, prefix in online_work:
        alone = alone.with_chunk(tokens, prefix)
    if alone.decode_rows or alone.extend_tokens:
        return longest_step(snapshot.impact, model.upper(alone))
    single_s = model.upper(BatchShape(decode_rows=1, decode_kv_tokens=1))
    return min(longest_step(snapshot.impact, 0.0), IDLE_FACTOR * single_s)


def longest_step(room: ImpactRoom, alone_s: float) -> float:
    """Longest iteration that the room allows beside online work of `alone_s` seconds.

    alone_s: 0.0 if nobody is online. 0.0: no offline work now.
    """
    if room.waits_s2 <= 0.0:
        return alone_s
    by_waits_s = math.sqrt(alone_s * alone_s + 2.0 * room.waits_s2)
    if alone_s == 0.0:
        return by_waits_s
    return min(by_waits_s, alone_s * (1.0 + room.longer_share))


def _share_left(allowed: float, spent: float) -> float:
    return (allowed - spent) / allowed if allowed > 0.0 else 0.0
