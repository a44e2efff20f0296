"""What the co-scheduler decides for one iteration."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ChunkAction(StrEnum):
    """What happens to the request whose prefill is half done."""

    NONE = "none"
    """No such request."""
    CONTINUE = "continue"
    """It goes on in this iteration."""
    PARK = "park"
    """It keeps its KV and sits this iteration out."""
    RELEASE = "release"
    """Its KV goes to the tree, it returns to the offline pool."""


class Reason(StrEnum):
    """Why the plan is what it is; the log's first word."""

    IDLE = "idle"
    """Nothing to prefill."""
    ONLINE_PREFILL = "online_prefill"
    """Online prompts only."""
    ONLINE_WITH_OFFLINE = "online_with_offline"
    """Online prompts, and offline ones in the time and memory they leave."""
    OFFLINE_PREFILL = "offline_prefill"
    """Offline prompts fill the time that running online rows leave."""
    DECODE_FIRST = "decode_first"
    """Offline work waits: a chunk now would slow the offline rows that decode by more than it
    is worth, or evict KV worth more."""
    NO_SLACK = "no_slack"
    """Offline work waits: running online rows leave no time for a useful chunk."""
    NO_IMPACT = "no_impact"
    """Offline work waits: online requests got as much slower as they may."""
    NO_MEMORY = "no_memory"
    """Offline work waits: KV beyond the burst reserve is taken."""
    NO_SLOT = "no_slot"
    """Offline work waits: request slots are taken."""
    NO_DECODE_TIME = "no_decode_time"
    """Offline work waits: with one row more, decoding would take more than its share of a TPOT."""
    SAFE_MODE = "safe_mode"
    """The step-time model does not know this server yet: offline work only when alone."""


class PlanKind(StrEnum):
    """What a plan that was considered adds to the rows that decode."""

    KEEP = "keep"
    """Nothing."""
    CHUNK = "chunk"
    """The half-done offline prompt goes on."""
    SIBLINGS = "siblings"
    """Offline prompts whose prefix is in the cache; a half-done one gets what they leave."""
    NEXT_GROUP = "next_group"
    """The half-done prompt and all candidates, those too that begin another prefix group."""
    ONLINE = "online"
    """Online prompts."""
    ONLINE_SIBLINGS = "online_siblings"
    """Online prompts, and offline ones whose prefix is in the cache."""
    ONLINE_NEXT_GROUP = "online_next_group"
    """Online prompts and all offline candidates."""


class ReleaseCause(StrEnum):
    """Why offline rows give way."""

    SHORTAGE = "shortage"
    """Waiting online requests lack KV or slots."""
    RESERVE = "reserve"
    """They grew into the KV kept for online bursts."""
    TIME = "time"
    """With them, a decode step takes longer than online rows can bear."""
    IMPACT = "impact"
    """With them, online requests would get slower than they may."""
    SAFE_MODE = "safe_mode"
    """Nothing can be predicted and online rows run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOption:
    """A plan that was considered.

    released: offline rows it sends away. benefit_tokens: offline tokens it advances, weighed by
    urgency, less what it makes others compute again. seconds: upper bound of its time.
    feasible: False if it was only weighed to show why rows give way.
    """

    kind: PlanKind
    chunk_tokens: int
    released: int
    benefit_tokens: float
    seconds: float
    feasible: bool = True

    @property
    def rate(self) -> float:
        """Benefit per second, by which plans are compared."""
        return self.benefit_tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One iteration: who is prefilled, how much, who gives way, and why.

    chunk_tokens: prompt tokens to compute at most; 0 defers prefill to decode.
    offline_tokens: how many of them offline requests may take; chunk_limit_tokens: how many of
    these a half-done prompt that goes on, None for all that it needs.
    reserve_tokens: KV that newly admitted offline requests must leave available.
    online_order, offline_order: request ids in admission order.
    release: offline rows that give their KV back to the tree before admission; release_cause
    says why.
    budget_s: time the SLOs leave for this iteration (inf without online rows or guard).
    predicted_s: upper bound of the iteration's time as planned.
    kind: which of the `options` that were considered this is.
    """

    reason: Reason
    chunk_tokens: int = 0
    offline_tokens: int = 0
    chunk_limit_tokens: int | None = None
    reserve_tokens: int = 0
    online_order: tuple[str, ...] = ()
    offline_order: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    release_cause: ReleaseCause | None = None
    chunk_action: ChunkAction = ChunkAction.NONE
    budget_s: float = 0.0
    predicted_s: float = 0.0
    kind: PlanKind = PlanKind.KEEP
    options: tuple[PlanOption, ...] = ()

    @property
    def runs_prefill(self) -> bool:
        """True if this iteration computes prompt tokens."""
        return self.chunk_tokens > 0
