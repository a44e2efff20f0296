"""Idle online KV by age: which bucket every node is in, and how many tokens each holds."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from echo_sglang.kv.reuse import AGE_EDGES_S, NUM_BUCKETS, bucket_of

Item = TypeVar("Item")


@dataclass(slots=True)
class _Idle:
    bucket: int
    tokens: int
    used_s: float
    ticket: int


class AgeBuckets(Generic[Item]):
    """Items with the time of their last use, moved from bucket to bucket as they age.

    Entering, leaving and every move cost O(log items); nothing is looked at that did not move.
    What enters is sorted in when somebody asks for sums or time passes: a request that inserts
    KV holds it a moment later, and most of what enters has left by then.
    """

    def __init__(self) -> None:
        self._fresh: dict[Item, tuple[int, int, float]] = {}
        self._idle: dict[Item, _Idle] = {}
        self._due: list[tuple[float, int, Item]] = []
        self._tickets = 0
        self._tokens = [0] * NUM_BUCKETS

    def __len__(self) -> int:
        return len(self._fresh) + len(self._idle)

    def __contains__(self, item: Item) -> bool:
        return item in self._fresh or item in self._idle

    def enter(self, item: Item, *, used_s: float, tokens: int, now_s: float) -> int:
        """`item`, last used at `used_s`, is idle now; returns its bucket. In again: replaced."""
        if item in self._idle:
            self.leave(item)
        bucket = bucket_of(now_s - used_s)
        self._fresh[item] = (bucket, tokens, used_s)
        return bucket

    def leave(self, item: Item) -> int | None:
        """`item` is in use or gone; returns the bucket it was in, None if it was not idle."""
        fresh = self._fresh.pop(item, None)
        if fresh is not None:
            return fresh[0]
        idle = self._idle.pop(item, None)
        if idle is None:
            return None
        self._tokens[idle.bucket] -= idle.tokens
        return idle.bucket

    def bucket(self, item: Item) -> int | None:
        """The bucket of `item` as of the last `advance`, None if it is not idle."""
        fresh = self._fresh.get(item)
        if fresh is not None:
            return fresh[0]
        idle = self._idle.get(item)
        return None if idle is None else idle.bucket

    def resize(self, item: Item, tokens: int) -> None:
        """`item` holds this many tokens now; nothing happens if it is not idle."""
        fresh, idle = self._fresh.get(item), self._idle.get(item)
        if fresh is not None:
            self._fresh[item] = (fresh[0], tokens, fresh[2])
        elif idle is not None:
            self._tokens[idle.bucket] += tokens - idle.tokens
            idle.tokens = tokens

    def tokens_of(self, item: Item) -> int:
        """Tokens of an idle item. Raises KeyError if it is not idle."""
        fresh = self._fresh.get(item)
        return self._idle[item].tokens if fresh is None else fresh[1]

    def tokens_in(self, bucket: int) -> int:
        """Idle tokens of one age."""
        self._sort_in()
        return self._tokens[bucket]

    def _sort_in(self) -> None:
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, {}
        for item, (bucket, tokens, used_s) in fresh.items():
            self._tickets += 1
            idle = self._idle[item] = _Idle(bucket, tokens, used_s, self._tickets)
            self._tokens[bucket] += tokens
            self._schedule(item, idle)

    def advance(self, now_s: float) -> Iterator[tuple[Item, int]]:
        """Move what has aged; yields every item moved, with its new bucket."""
        self._sort_in()
        due = self._due
        while due and due[0][0] <= now_s:
            _, ticket, item = heapq.heappop(due)
            idle = self._idle.get(item)
            if idle is None or idle.ticket != ticket:
                continue
            self._tokens[idle.bucket] -= idle.tokens
            idle.bucket = max(bucket_of(now_s - idle.used_s), idle.bucket + 1)
            self._tokens[idle.bucket] += idle.tokens
            self._schedule(item, idle)
            yield item, idle.bucket

    def _schedule(self, item: Item, idle: _Idle) -> None:
        if idle.bucket == NUM_BUCKETS - 1:
            return
        heapq.heappush(self._due, (idle.used_s + AGE_EDGES_S[idle.bucket], idle.ticket, item))
        if len(self._due) > 4 * len(self._idle) + 1024:
            self._due = [e for e in self._due if self._holds(e[2], e[1])]
            heapq.heapify(self._due)

    def _holds(self, item: Item, ticket: int) -> bool:
        idle = self._idle.get(item)
        return idle is not None and idle.ticket == ticket
