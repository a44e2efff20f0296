"""What one iteration may compute in a given time: the step-time model asked the right way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.snapshot import Snapshot
from echo_sglang.estimate.step_time import StepTimeModel

Work = Sequence[tuple[int, int]]
"""Prefill still to do, in admission order: (tokens to compute, tokens before them)."""


def total_tokens(work: Work) -> int:
    """Prompt tokens that `work` still has to compute."""
    return sum(extend for extend, _ in work)


@dataclass(frozen=True, slots=True)
class Iteration:
    """The iteration being planned. decode: its rows that produce one token each."""

    snapshot: Snapshot
    model: StepTimeModel
    decode: BatchShape

    def seconds(self, work: Work, tokens: int) -> float:
        """Upper bound of the time until every online row has its next token.

        In a mixed iteration that is one iteration; otherwise the decode step that has to
        follow the prefill counts too.
        """
        if tokens <= 0:
            return self.model.upper(self.decode)
        if self.snapshot.mixed:
            return self.model.upper(_with_work(self.decode, work, tokens))
        prefill_s = self.model.upper(_with_work(BatchShape(), work, tokens))
        return prefill_s + (self.model.upper(self.decode) if self.decode.decode_rows else 0.0)

    def largest_chunk(self, work: Work, budget_s: float) -> int:
        """Most prompt tokens of `work`, in order, whose iteration ends within `budget_s`."""
        high = self.chunk_cap(work)
        if math.isinf(budget_s):
            return high
        low = 0
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(work, middle) <= budget_s:
                low = middle
            else:
                high = middle - 1
        return low

    def chunk_cap(self, work: Work) -> int:
        """All of `work`, or as much of it as the server prefills at once."""
        return min(total_tokens(work), self.snapshot.chunk_cap_tokens)

    def known_tokens(self) -> int:
        """Beyond twice the largest prefill measured, nobody is risked on a guess."""
        return max(2 * self.model.largest_extend_tokens, 1)

    def is_efficient(self, work: Work, tokens: int, share: float) -> bool:
        """False if a chunk's tokens per added second are below `share` of a full chunk's."""
        full = self.chunk_cap(work)
        without_s = self.seconds(work, 0)
        cost_s = (self.seconds(work, tokens) - without_s) / tokens
        full_cost_s = (self.seconds(work, full) - without_s) / full
        return cost_s * share <= full_cost_s


def _with_work(base: BatchShape, work: Work, tokens: int) -> BatchShape:
    """`base` plus the first `tokens` of `work`."""
    extend_tokens, pairs, square = base.extend_tokens, base.extend_pairs, base.extend_square
    left = tokens
    for extend, prefix in work:
        chunk = min(extend, left)
        if chunk <= 0:
            break
        extend_tokens += chunk
        pairs += chunk * prefix
        square += chunk * chunk
        left -= chunk
    return BatchShape(
        extend_tokens=extend_tokens,
        extend_pairs=pairs,
        extend_square=square,
        decode_rows=base.decode_rows,
        decode_kv_tokens=base.decode_kv_tokens,
    )
