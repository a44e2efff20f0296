"""What a plan is worth, and which of those considered is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echo_sglang.domain.plan import ChunkAction, PlanKind, PlanOption
from echo_sglang.domain.snapshot import OfflineCandidate, OfflineRows, Snapshot, WaitingOnline
from echo_sglang.policy.iteration import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One plan for the iteration, not weighed yet.

    work: its prefill in admission order. tokens: how many of them are computed, offline_tokens
    of them for offline requests. chunk_limit: what of these a half-done prompt may take, which
    then comes last in `work`; None for all. budget_s: what the SLOs leave for the iteration.
    """

    kind: PlanKind
    budget_s: float
    action: ChunkAction = ChunkAction.NONE
    work: Work = ()
    tokens: int = 0
    offline_tokens: int = 0
    chunk_limit: int | None = None
    online: tuple[WaitingOnline, ...] = ()
    offline: tuple[OfflineCandidate, ...] = ()


def benefit_tokens(draft: Draft, snapshot: Snapshot, rows: OfflineRows) -> float:
    """Offline tokens that `draft` advances beside the offline `rows` that decode.

    Computed, served from the cache or decoded, each weighed by the urgency of its request; less
    those that it makes somebody compute again, as many times as they are expected to be hit.
    """
    gained = sum(rows.urgencies)
    left = draft.offline_tokens
    chunk = snapshot.chunk
    if chunk is not None and draft.action is ChunkAction.CONTINUE and not chunk.is_online:
        limit = chunk.remaining_tokens if draft.chunk_limit is None else draft.chunk_limit
        part = min(chunk.remaining_tokens, limit, left)
        gained += chunk.urgency * part
        left -= part
    for candidate in draft.offline:
        if left <= 0:
            break
        part = min(candidate.extend_tokens, left)
        gained += candidate.urgency * (part + candidate.prefix_tokens)
        left -= part
    return gained - _recomputed(draft.tokens, snapshot.online.rows + len(rows), snapshot)


def option_of(
    draft: Draft, snapshot: Snapshot, rows: OfflineRows, released: int, seconds: float
) -> PlanOption:
    """`draft` weighed. seconds: upper bound of its iteration."""
    return PlanOption(
        kind=draft.kind,
        chunk_tokens=draft.tokens,
        released=released,
        benefit_tokens=benefit_tokens(draft, snapshot, rows),
        seconds=seconds,
    )


def best_of(options: Sequence[PlanOption], last_chunk_tokens: int, equal_share: float) -> int:
    """Index of the option with the greatest benefit per second.

    Ties: the fewest rows released, then the chunk most like the last. To do nothing for
    offline work is chosen only if nothing else can be done: KV that will be hit again would
    otherwise keep it from running for ever.
    """
    useful = [i for i, option in enumerate(options) if option.benefit_tokens > 0.0]
    busy = [i for i, option in enumerate(options) if option.chunk_tokens > 0]
    among = useful or busy or list(range(len(options)))
    greatest = max(options[i].rate for i in among)
    near = [i for i in among if options[i].rate >= greatest - equal_share * abs(greatest)]
    return min(
        near,
        key=lambda i: (options[i].released, abs(options[i].chunk_tokens - last_chunk_tokens)),
    )


def _recomputed(prompt_tokens: int, decode_rows: int, snapshot: Snapshot) -> float:
    """What a chunk evicts counts against it; what the rows that decode evict, they do anyway."""
    memory = snapshot.memory
    if memory.free_tokens is None:
        return 0.0
    free = max(memory.free_tokens - decode_rows, 0)
    return max(prompt_tokens - free, 0) * memory.victim_hits
