"""What the co-scheduler sees at one decision: plain values, taken at one moment.

All times are seconds on one monotonic clock; all sizes are KV tokens.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from echo_sglang.domain.tag import ServiceClass


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineLoad:
    """The online rows that decode now, summed.

    earliest_deadline_s: the soonest next-token deadline among them, None without rows.
    earliest_gap_s: the soonest moment at which a gap between two tokens of one of them
    would exceed the allowed maximum, None without rows.
    tightest_tpot_s: the smallest TPOT SLO among them, None without rows.
    """

    rows: int = 0
    kv_tokens: int = 0
    earliest_deadline_s: float | None = None
    earliest_gap_s: float | None = None
    tightest_tpot_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRow:
    """One offline row that decodes now.

    private_tokens: KV that only this row holds locked, given back when it is released; 0 while no
    row may have to give KV back.
    releasable: False while a result of it is in flight that must not be lost, or when
    SGLang cannot resume it (multimodal, embeddings, beam search, sessions).
    preemptions: how often it gave way so far. urgency: see `OfflineCandidate`.
    """

    rid: str
    kv_tokens: int
    private_tokens: int
    output_tokens: int
    remaining_tokens: int
    releasable: bool = True
    preemptions: int = 0
    urgency: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRows:
    """The offline rows that decode now: one column per field of `OfflineRow`, in its order.

    Every iteration takes them down and few look at one: a row is put together when it is asked
    for, and hundreds of rows in thousands of remembered decisions are a few objects each.
    """

    rids: tuple[str, ...] = ()
    kv_tokens: tuple[int, ...] = ()
    private_tokens: tuple[int, ...] = ()
    output_tokens: tuple[int, ...] = ()
    remaining_tokens: tuple[int, ...] = ()
    releasable: tuple[bool, ...] = ()
    preemptions: tuple[int, ...] = ()
    urgencies: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.rids) == len(self.kv_tokens) == len(self.urgencies)

    @classmethod
    def of(cls, rows: Iterable[OfflineRow]) -> OfflineRows:
        """These rows, in their order."""
        names = OfflineRow.__slots__
        return cls.of_tuples([tuple([getattr(row, name) for name in names]) for row in rows])

    @classmethod
    def of_tuples(cls, rows: Sequence[tuple[Any, ...]]) -> OfflineRows:
        """Rows as tuples of the fields of `OfflineRow`, in its order."""
        columns = zip(*rows, strict=True)
        return cls(**dict(zip(cls.__slots__, columns, strict=True))) if rows else cls()

    def __len__(self) -> int:
        return len(self.rids)

    def __iter__(self) -> Iterator[OfflineRow]:
        names = OfflineRow.__slots__
        for values in zip(*self._columns(), strict=True):
            yield OfflineRow(**dict(zip(names, values, strict=True)))

    def without(self, rids: Collection[str]) -> OfflineRows:
        """All rows but those of these requests."""
        rows = zip(*self._columns(), strict=True)
        return self.of_tuples([row for row in rows if row[0] not in rids])

    def _columns(self) -> list[tuple[Any, ...]]:
        return [getattr(self, name) for name in self.__slots__]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingOnline:
    """One online request that waits for its prefill."""

    rid: str
    deadline_s: float
    extend_tokens: int
    prefix_tokens: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkInProgress:
    """The request whose prefill is half done (SGLang has at most one).

    deadline_s: first-token deadline of an online request, None for an offline one.
    parked_steps: iterations in a row that it has sat out. urgency: see `OfflineCandidate`.
    """

    rid: str
    service_class: ServiceClass
    remaining_tokens: int
    prefix_tokens: int
    deadline_s: float | None = None
    releasable: bool = True
    parked_steps: int = 0
    urgency: float = 1.0

    @property
    def is_online(self) -> bool:
        """True for an online request."""
        return self.service_class is ServiceClass.ONLINE


class OfflineCandidate(NamedTuple):
    """One pooled or parked offline request that could be prefilled next, best first. A tuple,
    since every decision makes some.

    extend_tokens: tokens still to compute after `prefix_tokens` served from the cache.
    steps_parked: iterations since it was released, None if it never ran.
    rest_steps: how many of them it stays away, unless KV and time clearly grew since: available
    to offline work were `left_available_tokens` and `left_budget_s` when it gave way.
    urgency: what one token of it is worth beside one of work without a deadline: 1.0, and more
    the less time is left (`policy/deadlines.py`).
    """

    rid: str
    extend_tokens: int
    prefix_tokens: int
    max_new_tokens: int
    steps_parked: int | None = None
    rest_steps: int = 0
    urgency: float = 1.0
    left_available_tokens: int = 0
    left_budget_s: float = math.inf

    @property
    def is_cached(self) -> bool:
        """True if most of it is in the cache: its prefix group is at work already."""
        return self.prefix_tokens >= self.extend_tokens

    @property
    def rests(self) -> bool:
        """True while it was released too lately to run again."""
        return self.steps_parked is not None and self.steps_parked < self.rest_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryView:
    """KV tokens of the pool.

    available_tokens: free, or cached and evictable.
    growth_tokens: what the running rows are still expected to need.
    reserve_tokens: kept from offline work for online bursts.
    protected_tokens: the part of the available that is idle online KV worth more than the
    offline work that would evict it.
    denied_tokens: what a waiting online request was refused in the last iteration.
    free_tokens: the part of the available that holds nothing; None if not known. Beyond it
    every token computed evicts one.
    victim_hits: expected future hits of a token that would be evicted next.
    """

    total_tokens: int
    available_tokens: int
    growth_tokens: int
    reserve_tokens: int
    denied_tokens: int = 0
    protected_tokens: int = 0
    free_tokens: int | None = None
    victim_hits: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImpactRoom:
    """What offline work may still cost online requests; nothing by default.

    waits_s2: most that one iteration may cost while nobody is online, as half the square of its
    length: what requests that arrive while it runs will wait for it in all.
    longer_share: how much longer one iteration with online rows may take than without
    offline work, as a share of that. begins: offline rows may join it and prompts be computed;
    otherwise those that decode only go on.
    times_s: weights of `FineTimes`, which says what iterations without much prefill take;
    empty if not known.
    """

    waits_s2: float = 0.0
    longer_share: float = 0.0
    begins: bool = False
    times_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything one decision depends on, besides the step-time model and the settings.

    mixed: prefill and decode rows share an iteration (SGLang's mixed chunked prefill).
    in_flight_s: predicted rest of the iteration that the device still computes.
    delivery_steps: iterations until a token computed now reaches its client: 1, or 2
    where results are processed one iteration late and the device does not run ahead.
    chunk_cap_tokens: the server's chunked_prefill_size.
    typical_burst_tokens: online prompt tokens that tend to arrive together.
    pooled: offline requests that wait. last_chunk_tokens: prompt tokens of the last plan.
    impact: what offline work may cost online requests, where that is the bound; None where
    their SLOs are.
    """

    step: int
    now_s: float
    mixed: bool
    page_size: int
    chunk_cap_tokens: int
    free_slots: int
    memory: MemoryView
    in_flight_s: float = 0.0
    delivery_steps: int = 1
    online: OnlineLoad = OnlineLoad()
    offline_rows: OfflineRows = OfflineRows()
    waiting_online: tuple[WaitingOnline, ...] = ()
    chunk: ChunkInProgress | None = None
    candidates: tuple[OfflineCandidate, ...] = ()
    pooled: int = 0
    typical_burst_tokens: int = 0
    last_chunk_tokens: int = 0
    impact: ImpactRoom | None = None
