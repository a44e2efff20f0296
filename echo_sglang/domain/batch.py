"""What one iteration computes, in the sums that its time depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """Sufficient sums of one batch for step-time estimation.

    extend_tokens: prompt tokens computed, over all prefilling requests.
    extend_pairs: sum over prefilling requests of chunk * prefix (attention to cached KV).
    extend_square: sum over prefilling requests of chunk * chunk (attention within the chunk).
    decode_rows: rows that produce one token each.
    decode_kv_tokens: KV tokens those rows attend to.
    """

    extend_tokens: int = 0
    extend_pairs: int = 0
    extend_square: int = 0
    decode_rows: int = 0
    decode_kv_tokens: int = 0

    @property
    def has_extend(self) -> bool:
        """True for a prefill or mixed batch."""
        return self.extend_tokens > 0

    def with_chunk(self, chunk_tokens: int, prefix_tokens: int) -> BatchShape:
        """This batch plus one request that computes `chunk_tokens` after `prefix_tokens`."""
        return BatchShape(
            extend_tokens=self.extend_tokens + chunk_tokens,
            extend_pairs=self.extend_pairs + chunk_tokens * prefix_tokens,
            extend_square=self.extend_square + chunk_tokens * chunk_tokens,
            decode_rows=self.decode_rows,
            decode_kv_tokens=self.decode_kv_tokens,
        )
