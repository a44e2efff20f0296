"""Evictable leaves in the order in which they should go, kept up to date leaf by leaf.

A leaf's worth is a sum of two parts: the online part depends only on its age bucket (or is
zero), the offline part is its number of waiting requests. So the leaves of one bucket stay
sorted by (references, recency) while the worth of the bucket itself may change at any time
without touching one of them; the victim is the best of at most `NUM_BUCKETS + 1` heads.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, Generic, TypeVar

from sortedcontainers import SortedList

from echo_sglang.kv.reuse import NUM_BUCKETS

Leaf = TypeVar("Leaf")

OFFLINE_ONLY = NUM_BUCKETS
"""The queue of leaves that no online request has used."""

_Place = tuple[int, tuple[int, int, Any]]


class EvictionOrder(Generic[Leaf]):
    """Leaves by (queue, references, recency). Every change and every victim: O(log leaves).

    Recency is the order in which leaves came in: a leaf leaves while it is in use.
    """

    def __init__(self) -> None:
        self._queues = [SortedList() for _ in range(NUM_BUCKETS + 1)]
        self._places: dict[Leaf, _Place] = {}
        self._tickets = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, leaf: Leaf) -> bool:
        return leaf in self._places

    def add(self, leaf: Leaf, *, queue: int, references: int) -> None:
        """`leaf` may be evicted from now on; it is the most recently used of its kind.

        queue: its age bucket, or OFFLINE_ONLY. Raises KeyError if it is in already.
        """
        if leaf in self._places:
            raise KeyError(f"{leaf!r} is in the order already")
        self._tickets += 1
        self._place(leaf, queue, (references, self._tickets, leaf))

    def discard(self, leaf: Leaf) -> int | None:
        """`leaf` is in use or gone; returns the queue it was in, None if in none."""
        place = self._places.pop(leaf, None)
        if place is None:
            return None
        queue, entry = place
        self._queues[queue].remove(entry)
        return queue

    def move(self, leaf: Leaf, queue: int) -> None:
        """`leaf`, which is in, belongs to another queue now; its recency stays."""
        old, entry = self._places[leaf]
        if old != queue:
            self._queues[old].remove(entry)
            self._place(leaf, queue, entry)

    def refer(self, leaf: Leaf, references: int) -> None:
        """`leaf`, which is in, has this many waiting requests now; its recency stays."""
        queue, entry = self._places[leaf]
        if entry[0] != references:
            self._queues[queue].remove(entry)
            self._place(leaf, queue, (references, *entry[1:]))

    def references(self, leaf: Leaf) -> int:
        """Waiting requests of `leaf`. Raises KeyError if it is not in."""
        return self._places[leaf][1][0]

    def queue(self, leaf: Leaf) -> int:
        """The queue of `leaf`. Raises KeyError if it is not in."""
        return self._places[leaf][0]

    def victim(
        self, worth: Callable[[int], float], *, queues: Container[int], passed_over: Container[Leaf]
    ) -> Leaf | None:
        """The leaf that is worth least, the least recently used among equals.

        worth: of one online use part, by queue. queues: those to choose from. passed_over:
        leaves that cannot go just now.
        """
        best: tuple[float, int] | None = None
        victim: Leaf | None = None
        for number, queue in enumerate(self._queues):
            if not queue or number not in queues:
                continue
            for references, ticket, leaf in queue:
                if leaf in passed_over:
                    continue
                rank = (worth(number) + references, ticket)
                if best is None or rank < best:
                    best, victim = rank, leaf
                break
        return victim

    def _place(self, leaf: Leaf, queue: int, entry: tuple[int, int, Any]) -> None:
        self._queues[queue].add(entry)
        self._places[leaf] = (queue, entry)
