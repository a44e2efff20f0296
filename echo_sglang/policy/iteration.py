"""What one iteration may compute in a given time: the step-time model asked the right way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.snapshot import Snapshot
from echo_sglang.estimate.step_time import StepTimeModel

MAX_SECANTS = 6
"""Guesses along the secant before the rest is halved."""

Work = Sequence[tuple[int, int]]
"""Prefill still to do, in admission order: (tokens to compute, tokens before them)."""


def total_tokens(work: Work) -> int:
    """Prompt tokens that `work` still has to compute."""
    return sum([extend for extend, _ in work])


class _Known(NamedTuple):
    """What was found out of some work: a decision asks the same more than once.

    seconds: by tokens of it. chunks: the largest chunk, by budget.
    """

    seconds: dict[int, float]
    chunks: dict[float, int]


@dataclass(frozen=True, slots=True)
class Iteration:
    """The iteration being planned.

    decode: its rows that produce one token each. decode_s: the time they take alone.
    """

    snapshot: Snapshot
    model: StepTimeModel
    decode: BatchShape
    decode_s: float = field(init=False)
    _known: dict[tuple[tuple[int, int], ...], _Known] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "decode_s", self.model.upper(self.decode))

    def seconds(self, work: Work, tokens: int) -> float:
        """Upper bound of the time until every online row has its next token.

        In a mixed iteration that is one iteration; otherwise the decode step that has to
        follow the prefill counts too.
        """
        return self._seconds(self._of(work), work, tokens) if tokens > 0 else self.decode_s

    def _seconds(self, known: _Known, work: Work, tokens: int) -> float:
        found_s = known.seconds.get(tokens)
        if found_s is None:
            if self.snapshot.mixed:
                found_s = self.model.upper(_with_work(self.decode, work, tokens))
            else:
                found_s = self.model.upper(_with_work(BatchShape(), work, tokens))
                found_s += self.decode_s if self.decode.decode_rows else 0.0
            known.seconds[tokens] = found_s
        return found_s

    def largest_chunk(self, work: Work, budget_s: float) -> int:
        """Most prompt tokens of `work`, in order, whose iteration ends within `budget_s`."""
        high = self.chunk_cap(work)
        if math.isinf(budget_s):
            return high
        known = self._of(work)
        found = known.chunks.get(budget_s)
        if found is None:
            found = known.chunks[budget_s] = largest_within(
                high, lambda tokens: self._seconds(known, work, tokens), budget_s
            )
        return found

    def _of(self, work: Work) -> _Known:
        key = tuple(work)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = _Known({}, {})
        return known

    def chunk_cap(self, work: Work) -> int:
        """All of `work`, or as much of it as the server prefills at once."""
        return min(total_tokens(work), self.snapshot.chunk_cap_tokens)

    def known_tokens(self) -> int:
        """Beyond twice the largest prefill measured, nobody is risked on a guess."""
        return max(2 * self.model.largest_extend_tokens, 1)

    def known_chunk(self, work: Work, tokens: int) -> int:
        """The largest part of `tokens` of `work` whose time is no guess of the model."""
        base = self.decode if self.snapshot.mixed else BatchShape()
        return largest(
            tokens, lambda part: not self.model.extrapolates(_with_work(base, work, part))
        )

    def is_efficient(self, work: Work, tokens: int, share: float) -> bool:
        """False if a chunk's tokens per added second are below `share` of a full chunk's."""
        full = self.chunk_cap(work)
        without_s = self.decode_s
        cost_s = (self.seconds(work, tokens) - without_s) / tokens
        full_cost_s = (self.seconds(work, full) - without_s) / full
        return cost_s * share <= full_cost_s


def largest(high: int, holds: Callable[[int], bool]) -> int:
    """The largest number up to `high` for which `holds`, which once false stays false; else 0."""
    if high <= 0 or holds(high):
        return max(high, 0)
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


def largest_within(high: int, seconds: Callable[[int], float], budget_s: float) -> int:
    """The largest number up to `high` whose seconds are within `budget_s`; 0 if 1 has more.

    seconds: never falls. As `largest`, but guesses along the secant, since chunks are nearly
    proportional to their time: a handful of predictions instead of a dozen.
    """
    if high <= 0:
        return 0
    high_s = seconds(high)
    if high_s <= budget_s:
        return high
    low, low_s = 1, seconds(1)
    if low_s > budget_s:
        return 0
    before, before_s, last, last_s = low, low_s, high, high_s
    secants = 0
    while high - low > 1:
        rise_s = last_s - before_s
        middle = (low + high) // 2
        if secants < MAX_SECANTS and abs(rise_s) > 1e-12:
            secants += 1
            middle = last + math.floor((budget_s - last_s) * (last - before) / rise_s)
        middle = min(max(middle, low + 1), high - 1)
        before, before_s, last, last_s = last, last_s, middle, seconds(middle)
        if last_s <= budget_s:
            low = middle
        else:
            high = middle
    return low


def _with_work(base: BatchShape, work: Work, tokens: int) -> BatchShape:
    """`base` plus the first `tokens` of `work`."""
    extend_tokens, pairs, square, rows, kv_tokens, prefixes, longest = base
    left = tokens
    for extend, prefix in work:
        chunk = extend if extend < left else left
        if chunk <= 0:
            break
        extend_tokens += chunk
        pairs += chunk * prefix
        square += chunk * chunk
        prefixes += prefix
        if prefix > longest:
            longest = prefix
        left -= chunk
    return BatchShape(extend_tokens, pairs, square, rows, kv_tokens, prefixes, longest)
