"""What one iteration computes, in the sums that its time depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Regime(StrEnum):
    """Kinds of iterations that cost differently: prompts only, decode only, both."""

    EXTEND = "extend"
    DECODE = "decode"
    MIXED = "mixed"


class BatchShape(NamedTuple):
    """Sufficient sums of one batch for step-time estimation. A tuple, since a decision makes
    dozens of them.

    extend_tokens: prompt tokens computed, over all prefilling requests.
    extend_pairs: sum over prefilling requests of chunk * prefix (attention to cached KV).
    extend_square: sum over prefilling requests of chunk * chunk (attention within the chunk).
    decode_rows: rows that produce one token each.
    decode_kv_tokens: KV tokens those rows attend to.
    extend_prefix_tokens: sum over prefilling requests of the prefix: KV tokens read however
    short the chunk. 0 when not known.
    longest_prefix: the longest of those prefixes. 0 when not known.
    """

    extend_tokens: int = 0
    extend_pairs: int = 0
    extend_square: int = 0
    decode_rows: int = 0
    decode_kv_tokens: int = 0
    extend_prefix_tokens: int = 0
    longest_prefix: int = 0

    @property
    def has_extend(self) -> bool:
        """True for a prefill or mixed batch."""
        return self.extend_tokens > 0

    @property
    def regime(self) -> Regime:
        """Which kind of iteration this is; an empty batch counts as decode."""
        if not self.extend_tokens:
            return Regime.DECODE
        return Regime.MIXED if self.decode_rows else Regime.EXTEND

    def with_chunk(self, chunk_tokens: int, prefix_tokens: int) -> BatchShape:
        """This batch plus one request that computes `chunk_tokens` after `prefix_tokens`."""
        tokens, pairs, square, rows, kv_tokens, prefixes, longest = self
        return BatchShape(
            tokens + chunk_tokens,
            pairs + chunk_tokens * prefix_tokens,
            square + chunk_tokens * chunk_tokens,
            rows,
            kv_tokens,
            prefixes + prefix_tokens,
            max(longest, prefix_tokens),
        )


@dataclass(frozen=True, slots=True)
class StepSample:
    """One measured iteration: what it computed and the seconds it took."""

    shape: BatchShape
    seconds: float

    @property
    def usable(self) -> bool:
        """False for a time that cannot be: not finite or not positive."""
        return math.isfinite(self.seconds) and self.seconds > 0.0
