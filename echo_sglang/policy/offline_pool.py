"""The offline requests that wait outside SGLang's queue: who comes, who goes, who pays.

Nothing here grows with the pool: adding and taking a request cost a walk along its prompt and
O(log requests), naming the next candidates costs a walk along the groups at work.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Collection, Iterator

from echo_sglang.kv.prefix_index import Node, PrefixIndex
from echo_sglang.policy.deadlines import Deadlines, Due, OfflinePace, Outlook
from echo_sglang.policy.jobs import OUTPUT_COST, FairShares
from echo_sglang.policy.offline_entry import OfflineEntry, PoolSettings, WaitingRequest
from echo_sglang.policy.offline_order import WARM_TOKENS, OfflineOrder

__all__ = ["OfflineEntry", "OfflinePool", "PoolSettings"]


class OfflinePool:
    """Holds entries by request id and names candidates in the order worth trying."""

    def __init__(self, settings: PoolSettings | None = None) -> None:
        self._settings = settings or PoolSettings()
        self.index: PrefixIndex[str] = PrefixIndex()
        self.shares = FairShares(self._settings.weights)
        self.pace = OfflinePace()
        self.deadlines = Deadlines(self._settings.urgency)
        self._waiting: dict[str, WaitingRequest] = {}
        self._order = OfflineOrder(
            self._settings, self.index, self._waiting, self.shares, self.deadlines
        )
        self._parked: dict[str, None] = {}
        self._tickets = 0
        self._now_s = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, rid: str) -> bool:
        return rid in self._waiting

    @property
    def added(self) -> int:
        """How many requests ever came in, those that gave way and came back as often as that."""
        return self._tickets

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

    def urgency_of_running(self, entry: OfflineEntry, output_tokens: int, now_s: float) -> float:
        """As `urgency`, of a request that was admitted as `entry` and may still produce so many
        tokens; 1 without a deadline."""
        if entry.deadline_s is None:
            return 1.0
        due = Due(entry.deadline_s, entry.arrival_s)
        return self.deadlines.urgency_of_running(due, now_s, self.pace, output_tokens=output_tokens)

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
        waiting = WaitingRequest(
            entry,
            place=(entry.arrival_s, self._tickets, entry.rid),
            job=job,
            prompt_work=float(leaf.edge_tokens if leaf.count == 1 else 0),
        )
        self._waiting[entry.rid] = waiting
        self._order.add(waiting.place)
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
        waiting prompt had. Its job is charged for them, but not for what is computed again
        because it had given way. `produced` has to follow.
        """
        groups = self._waiting[rid].job.groups
        inside = bool(groups) and self.index.is_below(rid, groups[-1])
        was_parked = rid in self._parked
        waiting, nearest = self._take(rid)
        job = waiting.job
        job.running += 1
        self.pace.done(waiting.prompt_work)
        if was_parked:
            self._order.served(waiting, 0.0, self._now_s)
            return waiting.entry
        if computed_tokens is None:
            computed_tokens = int(waiting.prompt_work)
        job.computed_tokens += computed_tokens
        job.cached_tokens += waiting.entry.num_tokens - computed_tokens
        job.enter_group(nearest, inside=inside)
        if waiting.due is not None:
            waiting.due.group = nearest
        self._order.served(waiting, float(computed_tokens), self._now_s)
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

    def _take(self, rid: str) -> tuple[WaitingRequest, Node[str]]:
        waiting = self._waiting.pop(rid)
        nearest = self.index.remove(rid)
        self._order.remove(waiting.place)
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

    # ----------------------------------------------------------------- order

    def candidates(self, limit: int, now_s: float) -> list[OfflineEntry]:
        """At most `limit` entries in the order worth trying, see `OfflineOrder`.

        Only the order is meant; the caller finds out what is really cached and fits.
        """
        return list(self.named(limit, now_s))

    def named(
        self, limit: int, now_s: float, computing: Collection[int] = ()
    ) -> Iterator[OfflineEntry]:
        """The same one by one, found as they are asked for; valid until the pool changes.

        computing: identities of nodes of the index that are being computed. Groups at work that
        all wait for one of them are passed over.
        """
        self._now_s = max(self._now_s, now_s)
        if self._waiting:
            self.pace.tick(now_s)
        chosen: set[str] = set()
        for rid in self._order.in_order(limit, now_s, self._parked, self.pace, computing):
            if rid in chosen:
                continue
            chosen.add(rid)
            yield self._waiting[rid].entry
            if len(chosen) >= limit:
                return
