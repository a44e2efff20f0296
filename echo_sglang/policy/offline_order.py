"""Whose turn it is among waiting offline requests.

Urgent ones first, earliest deadline first, and with them the one that waited too long, once a
turn; then those that ran before; then jobs in turn, each by its prefix groups.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from sortedcontainers import SortedList

from echo_sglang.kv.prefix_index import Node, PrefixIndex
from echo_sglang.policy.deadlines import DeadlineClass, Deadlines, OfflinePace, Place
from echo_sglang.policy.jobs import FairShares, Job
from echo_sglang.policy.offline_entry import PoolSettings, WaitingRequest

WARM_TOKENS = 64
"""A prompt with fewer cached tokens than this is not worth a turn out of order."""

SCANNED_PER_CANDIDATE = 4
"""How many requests of a group are looked at for each that is wanted of it."""


class OfflineOrder:
    """Names waiting requests in the order worth trying, and keeps account of turns.

    It looks at the pool's own `index` and `waiting` requests, by id, and changes neither.
    """

    def __init__(
        self,
        settings: PoolSettings,
        index: PrefixIndex[str],
        waiting: Mapping[str, WaitingRequest],
        shares: FairShares,
        deadlines: Deadlines,
    ) -> None:
        self._settings = settings
        self._index = index
        self._waiting = waiting
        self._shares = shares
        self._deadlines = deadlines
        self._arrivals: Any = SortedList()
        self._turn: Job | None = None
        self._turn_tokens = 0.0
        self._since_overdue = settings.turn_tokens

    def add(self, place: Place) -> None:
        """A request waits."""
        self._arrivals.add(place)

    def remove(self, place: Place) -> None:
        """It left."""
        self._arrivals.remove(place)

    def served(self, waiting: WaitingRequest, tokens: float, now_s: float) -> None:
        """A request that left the pool runs and takes `tokens` of service."""
        job = waiting.job
        if self._is_overdue(waiting.entry.arrival_s, now_s):
            self._since_overdue = 0.0
        self._since_overdue += tokens
        alone = self._shares.num_waiting <= 1
        if alone or self._turn_is_over():
            self._turn, self._turn_tokens = job, 0.0
        if job is self._turn:
            self._turn_tokens += tokens
        self._shares.charge(job, tokens, now_s)

    def in_order(
        self,
        limit: int,
        now_s: float,
        parked: Iterable[str],
        pace: OfflinePace,
        computing: Collection[int],
    ) -> Iterator[str]:
        """Request ids, some of them twice; about `limit` of each kind. parked: ran before.
        computing: see `OfflinePool.named`."""
        overdue = list(self._overdue(now_s))
        turns = self._since_overdue / self._settings.turn_tokens
        if turns >= 2.0:
            yield from overdue
        for due in self._deadlines.urgent(now_s, pace):
            yield from self._of_class(due, limit)
        if turns >= 1.0:
            yield from overdue
        yield from parked
        yield from self._by_turns(limit, computing)
        yield from overdue

    def _overdue(self, now_s: float) -> Iterator[str]:
        if self._arrivals and self._is_overdue(self._arrivals[0][0], now_s):
            yield self._arrivals[0][2]

    def _is_overdue(self, arrival_s: float, now_s: float) -> bool:
        return now_s - arrival_s >= self._settings.max_wait_s

    def _of_class(self, due: DeadlineClass, limit: int) -> Iterator[str]:
        if due.group is not None and _shares(due.group):
            yield from self._within(due.group, limit, lambda waiting: waiting.due is due)
        yield from (rid for _, _, rid in islice(due.places, limit))

    def _by_turns(self, limit: int, computing: Collection[int]) -> Iterator[str]:
        """First the group of the job whose turn it is, then one request after the other, each
        of the job that would then have been served least."""
        fresh = self._shares.in_turn()
        if self._shares.num_waiting == 1:
            yield from self._of_only_job(next(fresh), limit, computing)
            return
        if self._turn is not None and not self._turn_is_over():
            yield from self._of_groups(self._turn, limit, computing)
        following = next(fresh, None)
        started: list[tuple[float, int, Job, Iterator[str]]] = []
        while following is not None or started:
            if following is not None and (
                not started or (following.virtual, following.order) <= started[0][:2]
            ):
                job, virtual = following, following.virtual
                rids = self._of_job(job, limit, computing)
                following = next(fresh, None)
            else:
                virtual, _, job, rids = heapq.heappop(started)
            rid = next(rids, None)
            if rid is not None:
                yield rid
                ahead = virtual + max(self._waiting[rid].work, 1.0) / job.weight
                heapq.heappush(started, (ahead, job.order, job, rids))

    def _turn_is_over(self) -> bool:
        """True once others must have their turn: it was long enough, or its group is used up."""
        job = self._turn
        if job is None or self._turn_tokens >= self._settings.turn_tokens:
            return True
        return not any(True for _ in self._of_groups(job, 1, ()))

    def _of_job(self, job: Job, limit: int, computing: Collection[int]) -> Iterator[str]:
        """Requests of one job among several: warm, of the groups at work, then by arrival."""
        yield from self._warm_head(job)
        yield from self._of_groups(job, limit, computing)
        yield from (rid for _, _, rid in islice(job.queue, limit))

    def _of_only_job(self, job: Job, limit: int, computing: Collection[int]) -> Iterator[str]:
        """The same while no other job waits; the group that saves most follows."""
        yield from self._warm_head(job)
        yield from self._of_groups(job, limit, computing)
        best = self._best_group()
        if best is not None:
            yield from self._within(best, limit)
        yield from self._within(self._index.root, limit)

    def _of_groups(self, job: Job, limit: int, computing: Collection[int]) -> Iterator[str]:
        """What waits in the groups a job is in the middle of, newest first.

        With it come requests of other jobs in them, unless those had a turn more already.
        """
        wanted = None
        if self._shares.num_waiting > 1:

            def wanted(waiting: WaitingRequest) -> bool:
                other = waiting.job
                ahead = self._shares.lead_tokens(other)
                return other is job or ahead < self._settings.turn_tokens

        for group in reversed(job.groups):
            if group.count and _shares(group) and id(group) not in computing:
                yield from self._within(group, limit, wanted)

    def _within(
        self, group: Node[str], limit: int, wanted: Callable[[WaitingRequest], bool] | None = None
    ) -> Iterator[str]:
        """Requests below a node, those `wanted`. A bounded number is looked at."""
        for rid, _ in islice(self._index.walk(group), SCANNED_PER_CANDIDATE * limit):
            if wanted is None or wanted(self._waiting[rid]):
                yield rid

    def _warm_head(self, job: Job) -> Iterator[str]:
        while job.warm:
            _, ticket, rid = job.warm[0]
            waiting = self._waiting.get(rid)
            if waiting is not None and waiting.place[1] == ticket:
                yield rid
                return
            heapq.heappop(job.warm)

    def _best_group(self) -> Node[str] | None:
        """The group that saves most by running together, None if nobody shares anything."""
        node: Node[str] = self._index.root
        while node.depth < WARM_TOKENS:
            child = self._index.best_child(node)
            if child is None or child.saving_tokens == 0:
                break
            node = child
        return None if node is self._index.root else node


def _shares(node: Node[str]) -> bool:
    """False for a node so near the root that going on below it saves nothing."""
    return node.depth >= WARM_TOKENS
