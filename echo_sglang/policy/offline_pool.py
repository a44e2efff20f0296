"""The offline requests that wait outside SGLang's queue, and whose turn it is.

Nothing here grows with the pool: adding and taking a request cost a walk along its prompt and
O(log requests), naming the next candidates costs a walk along the groups at work.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sortedcontainers import SortedList

from echo_sglang.kv.prefix_index import Node, PrefixIndex
from echo_sglang.policy.deadlines import (
    DeadlineClass,
    Deadlines,
    OfflinePace,
    Outlook,
    Place,
    UrgencySettings,
)
from echo_sglang.policy.jobs import NO_JOB, OUTPUT_COST, FairShares, Job

WARM_TOKENS = 64
"""A prompt with fewer cached tokens than this is not worth a turn out of order."""

SCANNED_PER_CANDIDATE = 4
"""How many requests of a group are looked at for each that is wanted of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineEntry:
    """One waiting offline request; its tokens are in the pool's prefix index.

    num_tokens: of its prompt, or of prompt and output so far if it ran before.
    deadline_s: on the scheduler's clock, or None. parked_at_step: iteration in which it
    was released, None if it never ran. job, weight: whose share it takes, and what the request
    says that share weighs.
    """

    rid: str
    num_tokens: int
    arrival_s: float
    max_new_tokens: int
    deadline_s: float | None = None
    parked_at_step: int | None = None
    job: str = NO_JOB
    weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Whose turn it is, and for how long.

    max_wait_s: older requests rise to the class of the urgent ones. turn_tokens: tokens of
    service that a job, or a group while somebody waits too long, gets before others must.
    weights: of jobs, by the operator; "*" stands for all others.
    """

    max_wait_s: float = 600.0
    turn_tokens: float = 65_536.0
    urgency: UrgencySettings = field(default_factory=UrgencySettings)
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Waiting:
    """prompt_work: prompt tokens that nobody else in the pool had. work: with the output."""

    entry: OfflineEntry
    place: Place
    job: Job
    prompt_work: float
    due: DeadlineClass | None = None

    @property
    def work(self) -> float:
        return self.prompt_work + OUTPUT_COST * self.entry.max_new_tokens


class OfflinePool:
    """Holds entries by request id and names candidates in the order worth trying."""

    def __init__(self, settings: PoolSettings | None = None) -> None:
        self._settings = settings or PoolSettings()
        self.index: PrefixIndex[str] = PrefixIndex()
        self.shares = FairShares(self._settings.weights)
        self.pace = OfflinePace()
        self.deadlines = Deadlines(self._settings.urgency)
        self._waiting: dict[str, _Waiting] = {}
        self._arrivals: Any = SortedList()
        self._parked: dict[str, None] = {}
        self._tickets = 0
        self._now_s = 0.0
        self._turn: Job | None = None
        self._turn_tokens = 0.0
        self._since_overdue = self._settings.turn_tokens

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, rid: str) -> bool:
        return rid in self._waiting

    def get(self, rid: str) -> OfflineEntry | None:
        """The entry of `rid`, or None."""
        waiting = self._waiting.get(rid)
        return None if waiting is None else waiting.entry

    def rids(self) -> Iterator[str]:
        """All request ids, in no order that means anything."""
        return iter(self._waiting)

    @property
    def num_parked(self) -> int:
        """How many waiting requests ran before and were released."""
        return len(self._parked)

    def tokens(self, rid: str) -> array[int]:
        """The tokens of a waiting request, int64 ids. Raises KeyError if it does not wait."""
        return self.index.tokens(rid)

    def urgency(self, rid: str) -> float:
        """What a token of a waiting request is worth beside one without a deadline, 1 or more."""
        due = self._waiting[rid].due
        return 1.0 if due is None else due.urgency

    def outlook(self, now_s: float) -> tuple[Outlook, ...]:
        """What is predicted of the work with deadlines, earliest first."""
        return self.deadlines.outlook(now_s, self.pace)

    # ------------------------------------------------------------ in and out

    def add(self, entry: OfflineEntry, tokens: array[int], *, cached_tokens: int = 0) -> None:
        """Take a request in. `cached_tokens` of its tokens are in the KV cache right now.

        The tokens are copied, those that others share not even that. Raises KeyError if its
        id is in the pool already.
        """
        assert entry.num_tokens == len(tokens)
        leaf = self.index.insert(entry.rid, tokens)
        self._now_s = max(self._now_s, entry.arrival_s)
        self._tickets += 1
        job = self.shares.job(entry.job, entry.weight)
        waiting = _Waiting(
            entry,
            place=(entry.arrival_s, self._tickets, entry.rid),
            job=job,
            prompt_work=float(leaf.edge_tokens if leaf.count == 1 else 0),
        )
        self._waiting[entry.rid] = waiting
        self._arrivals.add(waiting.place)
        job.waiting += 1
        if entry.deadline_s is not None:
            waiting.due = self.deadlines.add(
                waiting.place, entry.deadline_s, self._now_s, waiting.work, entry.max_new_tokens
            )
            job.due_s = max(job.due_s or waiting.due.due_s, waiting.due.due_s)
        if entry.parked_at_step is not None:
            self._parked[entry.rid] = None
            return
        self.shares.enqueue(job, waiting.place)
        if cached_tokens >= max(WARM_TOKENS, entry.num_tokens // 2):
            cost = (entry.num_tokens - cached_tokens) / cached_tokens
            heapq.heappush(job.warm, (cost, self._tickets, entry.rid))

    def remove(self, rid: str) -> OfflineEntry:
        """Take a request out, finished elsewhere or aborted. Raises KeyError if absent."""
        waiting, _ = self._take(rid)
        self.shares.left(waiting.job)
        return waiting.entry

    def admit(self, rid: str, *, computed_tokens: int | None = None) -> OfflineEntry:
        """Take a request out because it runs now; its siblings become the group at work.

        computed_tokens: of its prompt, the rest came from the cache; None: only what no other
        waiting prompt had. Its job is charged for them. `ended` or `add` has to follow.
        """
        newest = self._waiting[rid].job.groups[-1:]
        inside = bool(newest) and any(node is newest[0] for node in self.index.path(rid))
        was_parked = rid in self._parked
        waiting, nearest = self._take(rid)
        job = waiting.job
        job.running += 1
        if computed_tokens is None:
            computed_tokens = int(waiting.prompt_work)
        job.computed_tokens += computed_tokens
        job.cached_tokens += waiting.entry.num_tokens - computed_tokens
        self.pace.done(waiting.prompt_work)
        if not was_parked:
            job.enter_group(nearest, inside=inside)
            if waiting.due is not None:
                waiting.due.group = nearest
        self._count_turn(waiting, float(computed_tokens))
        return waiting.entry

    def produced(self, entry: OfflineEntry, output_tokens: int, *, ended: bool) -> None:
        """A request that was admitted as `entry` produced `output_tokens` since.

        ended: it is done or aborted; otherwise it gave way and is about to be added again.
        """
        job = self.shares.job(entry.job)
        job.running -= 1
        job.output_tokens += output_tokens
        self.shares.charge(job, OUTPUT_COST * output_tokens, self._now_s)
        self.pace.done(OUTPUT_COST * (entry.max_new_tokens if ended else output_tokens))
        if ended:
            self.pace.ended(output_tokens, entry.max_new_tokens)
            self.shares.left(job)

    def _take(self, rid: str) -> tuple[_Waiting, Node[str]]:
        waiting = self._waiting.pop(rid)
        nearest = self.index.remove(rid)
        self._arrivals.remove(waiting.place)
        if rid in self._parked:
            del self._parked[rid]
        else:
            self.shares.dequeue(waiting.job, waiting.place)
        waiting.job.waiting -= 1
        if not waiting.job.waiting:
            waiting.job.due_s = None
        if waiting.due is not None:
            self.deadlines.remove(waiting.due, waiting.place, waiting.work)
        if not self._waiting:
            self.pace.pause()
        return waiting, nearest

    def _count_turn(self, waiting: _Waiting, tokens: float) -> None:
        job = waiting.job
        if self._is_overdue(waiting.entry.arrival_s, self._now_s):
            self._since_overdue = 0.0
        self._since_overdue += tokens
        alone = self.shares.num_waiting <= 1
        if alone or self._turn_is_over():
            self._turn, self._turn_tokens = job, 0.0
        if job is self._turn:
            self._turn_tokens += tokens
        self.shares.charge(job, tokens, self._now_s)

    # ----------------------------------------------------------------- order

    def candidates(self, limit: int, now_s: float) -> list[OfflineEntry]:
        """At most `limit` entries in the order worth trying.

        Urgent ones first, earliest deadline first, and with them the one that waited too long,
        once a turn; then those that ran before, then jobs in turn, each by its groups.
        Only the order is meant; the caller finds out what is really cached and fits.
        """
        self._now_s = max(self._now_s, now_s)
        if self._waiting:
            self.pace.tick(now_s)
        chosen: dict[str, None] = {}
        for rid in self._in_order(limit, now_s):
            chosen[rid] = None
            if len(chosen) >= limit:
                break
        return [self._waiting[rid].entry for rid in chosen]

    def _in_order(self, limit: int, now_s: float) -> Iterator[str]:
        overdue = list(self._overdue(now_s))
        turns = self._since_overdue / self._settings.turn_tokens
        if turns >= 2.0:
            yield from overdue
        for due in self.deadlines.urgent(now_s, self.pace):
            yield from self._of_class(due, limit)
        if turns >= 1.0:
            yield from overdue
        yield from self._parked
        yield from self._by_turns(limit)
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

    def _by_turns(self, limit: int) -> Iterator[str]:
        """First the group of the job whose turn it is, then one request after the other, each
        of the job that would then have been served least."""
        fresh = self.shares.in_turn()
        if self.shares.num_waiting == 1:
            yield from self._of_only_job(next(fresh), limit)
            return
        if self._turn is not None and not self._turn_is_over():
            yield from self._of_groups(self._turn, limit)
        following = next(fresh, None)
        started: list[tuple[float, int, Job, Iterator[str]]] = []
        while following is not None or started:
            if following is not None and (
                not started or (following.virtual, following.order) <= started[0][:2]
            ):
                job, rids, virtual = following, self._of_job(following, limit), following.virtual
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
        return not any(True for _ in self._of_groups(job, 1))

    def _of_job(self, job: Job, limit: int) -> Iterator[str]:
        """Requests of one job among several: warm, of the groups at work, then by arrival."""
        yield from self._warm_head(job)
        yield from self._of_groups(job, limit)
        yield from (rid for _, _, rid in islice(job.queue, limit))

    def _of_only_job(self, job: Job, limit: int) -> Iterator[str]:
        """The same while no other job waits; the group that saves most follows."""
        yield from self._warm_head(job)
        yield from self._of_groups(job, limit)
        best = self._best_group()
        if best is not None:
            yield from self._within(best, limit)
        yield from self._within(self.index.root, limit)

    def _of_groups(self, job: Job, limit: int) -> Iterator[str]:
        """What waits in the groups a job is in the middle of, newest first.

        With it come requests of other jobs in them, unless those had a turn more already.
        """
        wanted = None
        if self.shares.num_waiting > 1:

            def wanted(waiting: _Waiting) -> bool:
                other = waiting.job
                ahead = self.shares.lead_tokens(other)
                return other is job or ahead < self._settings.turn_tokens

        for group in reversed(job.groups):
            if group.count and _shares(group):
                yield from self._within(group, limit, wanted)

    def _within(
        self, group: Node[str], limit: int, wanted: Callable[[_Waiting], bool] | None = None
    ) -> Iterator[str]:
        """Requests below a node, those `wanted`. A bounded number is looked at."""
        for rid, _ in islice(self.index.walk(group), SCANNED_PER_CANDIDATE * limit):
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
        node: Node[str] = self.index.root
        while node.depth < WARM_TOKENS:
            child = self.index.best_child(node)
            if child is None or child.saving_tokens == 0:
                break
            node = child
        return None if node is self.index.root else node


def _shares(node: Node[str]) -> bool:
    """False for a node so near the root that going on below it saves nothing."""
    return node.depth >= WARM_TOKENS
