"""The offline requests that wait outside SGLang's queue, and whose turn it is.

Nothing here grows with the pool: adding and taking a request cost a walk along its
prompt, naming the next candidates costs a walk along the group at work.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from echo_sglang.kv.prefix_index import Node, PrefixIndex

WARM_TOKENS = 64
"""A prompt with fewer cached tokens than this is not worth a turn out of order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineEntry:
    """One waiting offline request; its tokens are in the pool's prefix index.

    num_tokens: of its prompt, or of prompt and output so far if it ran before.
    deadline_s: on the scheduler's clock, or None. parked_at_step: iteration in which it
    was released, None if it never ran; it stays away for `rest_steps`.
    """

    rid: str
    num_tokens: int
    arrival_s: float
    max_new_tokens: int
    deadline_s: float | None = None
    parked_at_step: int | None = None
    rest_steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """max_wait_s: older requests go first. urgent_before_s: time to a deadline that does."""

    max_wait_s: float = 600.0
    urgent_before_s: float = 60.0


class OfflinePool:
    """Holds entries by request id and names candidates in the order worth trying."""

    def __init__(self, settings: PoolSettings | None = None) -> None:
        self._settings = settings or PoolSettings()
        self._entries: dict[str, OfflineEntry] = {}
        self.index: PrefixIndex[str] = PrefixIndex()
        self._parked: dict[str, None] = {}
        self._arrivals: list[tuple[float, str]] = []
        self._deadlines: list[tuple[float, str]] = []
        self._warm: deque[str] = deque()
        self._cursor: Node[str] = self.index.root

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, rid: str) -> bool:
        return rid in self._entries

    def get(self, rid: str) -> OfflineEntry | None:
        """The entry of `rid`, or None."""
        return self._entries.get(rid)

    def rids(self) -> Iterator[str]:
        """All request ids, in no order that means anything."""
        return iter(self._entries)

    @property
    def num_parked(self) -> int:
        """How many waiting requests ran before and were released."""
        return len(self._parked)

    def tokens(self, rid: str) -> array[int]:
        """The tokens of a waiting request, int64 ids. Raises KeyError if it does not wait."""
        return self.index.tokens(rid)

    def add(self, entry: OfflineEntry, tokens: array[int], *, cached_tokens: int = 0) -> None:
        """Take a request in. `cached_tokens` of its tokens are in the KV cache right now.

        The tokens are copied, those that others share not even that. Raises KeyError if its
        id is in the pool already.
        """
        assert entry.num_tokens == len(tokens)
        self.index.insert(entry.rid, tokens)
        self._entries[entry.rid] = entry
        heapq.heappush(self._arrivals, (entry.arrival_s, entry.rid))
        if entry.deadline_s is not None:
            heapq.heappush(self._deadlines, (entry.deadline_s, entry.rid))
        if entry.parked_at_step is not None:
            self._parked[entry.rid] = None
        elif cached_tokens >= WARM_TOKENS:
            self._warm.append(entry.rid)

    def remove(self, rid: str) -> OfflineEntry:
        """Take a request out, finished elsewhere or aborted. Raises KeyError if absent."""
        entry = self._entries.pop(rid)
        self.index.remove(rid)
        self._parked.pop(rid, None)
        return entry

    def admit(self, rid: str) -> OfflineEntry:
        """Take a request out because it runs now; its siblings become the group at work."""
        entry = self._entries.pop(rid)
        nearest = self.index.remove(rid)
        if rid in self._parked:
            del self._parked[rid]
        else:
            self._cursor = nearest
        return entry

    def candidates(self, limit: int, now_s: float) -> list[OfflineEntry]:
        """At most `limit` entries: urgent, overdue, parked, warm, the group at work, the next.

        Only the order is meant; the caller finds out what is really cached and fits.
        """
        chosen: dict[str, None] = {}
        for rid in self._in_order(now_s):
            chosen[rid] = None
            if len(chosen) >= limit:
                break
        return [self._entries[rid] for rid in chosen]

    def path(self, rid: str, *, deeper_than: int) -> list[int]:
        """Identities of the prefixes of a request that end beyond `deeper_than` tokens.

        Two requests of the pool share a prefix that long exactly if the lists intersect.
        """
        return [id(node) for node in self.index.path(rid) if node.depth > deeper_than]

    def _in_order(self, now_s: float) -> Iterator[str]:
        yield from self._urgent(now_s)
        yield from self._overdue(now_s)
        yield from self._parked
        yield from self._warm_heads()
        group = self._group_at_work()
        yield from (rid for rid, _ in self.index.walk(group))
        if group is not self.index.root:
            following = self._best_group(exclude=group)
            if following is not None:
                yield from (rid for rid, _ in self.index.walk(following))

    def _urgent(self, now_s: float) -> Iterator[str]:
        horizon = now_s + self._settings.urgent_before_s
        yield from self._due(self._deadlines, horizon)

    def _overdue(self, now_s: float) -> Iterator[str]:
        yield from self._due(self._arrivals, now_s - self._settings.max_wait_s)

    def _due(self, heap: list[tuple[float, str]], horizon: float) -> Iterator[str]:
        while heap and heap[0][1] not in self._entries:
            heapq.heappop(heap)
        if heap and heap[0][0] <= horizon:
            yield heap[0][1]

    def _warm_heads(self) -> Iterator[str]:
        while self._warm and self._warm[0] not in self._entries:
            self._warm.popleft()
        if self._warm:
            yield self._warm[0]

    def _group_at_work(self) -> Node[str]:
        node = self._cursor
        while node.count == 0 and node.parent is not None:
            node = node.parent
        if node.depth == 0 or not self._shares(node):
            best = self._best_group(exclude=None)
            node = best if best is not None else self.index.root
        self._cursor = node
        return node

    def _shares(self, node: Node[str]) -> bool:
        """False for a node so near the root that going on below it saves nothing."""
        return node.depth >= WARM_TOKENS

    def _best_group(self, exclude: Node[str] | None) -> Node[str] | None:
        node: Node[str] = self.index.root
        while True:
            child = self.index.best_child(node)
            if child is None or child is exclude or child.saving_tokens == 0:
                break
            node = child
            if node.depth >= WARM_TOKENS:
                break
        return None if node is self.index.root else node
