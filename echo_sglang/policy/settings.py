"""What the co-scheduler can be told."""

from __future__ import annotations

from dataclasses import dataclass

from echo_sglang.policy.slack import SloSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class CoschedulerSettings:
    """How the co-scheduler weighs.

    min_chunk_tokens: an offline chunk smaller than this is not worth an iteration.
    min_chunk_efficiency: nor is one whose tokens per second are below this share of a full
    chunk's, while online rows run.
    safe_chunk_tokens: chunk while nothing is known of the server's speed.
    decode_share: share of the TPOT SLO that decoding all rows may take; offline rows
    beyond it are not admitted, so that a chunk still fits beside them.
    min_parked_steps: iterations a released row stays away, see `preemption.rest_steps`.
    max_chunk_parked_steps: iterations in a row that a half-done prompt sits out for others
    whose prefix is cached.
    equal_rate_share: plans whose benefit per second differs by less are ties.
    """

    slo: SloSettings
    min_chunk_tokens: int = 16
    min_chunk_efficiency: float = 0.5
    safe_chunk_tokens: int = 32
    decode_share: float = 0.6
    min_parked_steps: int = 4
    max_chunk_parked_steps: int = 8
    equal_rate_share: float = 0.01
