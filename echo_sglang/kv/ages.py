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
    """

    def __init__(self) -> None:
        self._idle: dict[Item, _Idle] = {}
        self._due: list[tuple[float, int, Item]] = []
        self._tickets = 0
        self._tokens = [0] * NUM_BUCKETS

    def __len__(self) -> int:
        return len(self._idle)

    def __contains__(self, item: Item) -> bool:
        return item in self._idle

    def enter(self, item: Item, *, used_s: float, tokens: int, now_s: float) -> int:
        """`item`, last used at `used_s`, is idle now; returns its bucket. In again: replaced."""
        before = self._idle.get(item)
        if before is not None:
            self._tokens[before.bucket] -= before.tokens
        bucket = bucket_of(now_s - used_s)
        self._tickets += 1
        idle = self._idle[item] = _Idle(bucket, tokens, used_s, self._tickets)
        self._tokens[bucket] += tokens
        self._schedule(item, idle)
        return bucket

    def leave(self, item: Item) -> int | None:
        """`item` is in use or gone; returns the bucket it was in, None if it was not idle."""
        idle = self._idle.pop(item, None)
        if idle is None:
            return None
        self._tokens[idle.bucket] -= idle.tokens
        return idle.bucket

    def bucket(self, item: Item) -> int | None:
        """The bucket of `item` as of the last `advance`, None if it is not idle."""
        idle = self._idle.get(item)
        return None if idle is None else idle.bucket

    def resize(self, item: Item, tokens: int) -> None:
        """`item` holds this many tokens now; nothing happens if it is not idle."""
        idle = self._idle.get(item)
        if idle is not None:
            self._tokens[idle.bucket] += tokens - idle.tokens
            idle.tokens = tokens

    def tokens_of(self, item: Item) -> int:
        """Tokens of an idle item. Raises KeyError if it is not idle."""
        return self._idle[item].tokens

    def tokens_in(self, bucket: int) -> int:
        """Idle tokens of one age."""
        return self._tokens[bucket]

    def advance(self, now_s: float) -> Iterator[tuple[Item, int]]:
        """Move what has aged; yields every item moved, with its new bucket."""
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
