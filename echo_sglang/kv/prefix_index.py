"""A compressed radix trie over the prompts of waiting offline requests.

It answers what shares a prefix with what, without copying a token: an edge is a slice of
the prompt that created it. Every node counts the requests below it, so the number of
future uses of any prefix is one walk away, and every node keeps its children ordered by
the prefill they would save, so the best group is found without looking at all of them.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")


class Node(Generic[Key]):
    """A point in the trie. `depth` tokens lead to it; `count` requests pass through it."""

    __slots__ = ("children", "count", "depth", "heap", "keys", "parent", "start", "tokens")

    def __init__(self, parent: Node[Key] | None, tokens: array[int], start: int, depth: int):
        self.parent = parent
        self.tokens = tokens
        self.start = start
        self.depth = depth
        self.count = 0
        self.keys: dict[Key, None] = {}
        self.children: dict[int, Node[Key]] = {}
        self.heap: list[tuple[int, int, int]] = []

    @property
    def edge_tokens(self) -> int:
        """Length of the edge that leads here."""
        return self.depth - self.start

    @property
    def saving_tokens(self) -> int:
        """Prefill saved if all requests below share this edge's KV."""
        return (self.count - 1) * self.edge_tokens


class PrefixIndex(Generic[Key]):
    """Counts waiting prompts per prefix. Insert and remove cost O(prompt length) compares.

    Keys are unique and opaque. Prompts must not be mutated while they are in the index.
    """

    def __init__(self) -> None:
        self.root: Node[Key] = Node(None, array("q"), 0, 0)
        self._leaf_of: dict[Key, Node[Key]] = {}
        self._order = 0

    def __len__(self) -> int:
        return len(self._leaf_of)

    def __contains__(self, key: Key) -> bool:
        return key in self._leaf_of

    def insert(self, key: Key, tokens: array[int]) -> Node[Key]:
        """Add a prompt; returns the node where it ends. Raises KeyError on a known key."""
        if key in self._leaf_of:
            raise KeyError(f"{key!r} is in the index already")
        node = self.root
        while node.depth < len(tokens):
            child = node.children.get(tokens[node.depth])
            if child is None:
                child = self._grow(node, tokens)
            elif (shared := _shared_edge(child, tokens)) < child.depth:
                child = self._split(child, shared)
            node = child
        node.keys[key] = None
        self._leaf_of[key] = node
        self._count(node, 1)
        return node

    def remove(self, key: Key) -> Node[Key]:
        """Take a prompt out; returns the deepest node that still has requests, or the root.

        Raises KeyError on an unknown key.
        """
        leaf = self._leaf_of.pop(key)
        del leaf.keys[key]
        self._count(leaf, -1)
        node = leaf
        while node.count == 0 and node.parent is not None:
            parent = node.parent
            del parent.children[node.tokens[node.start]]
            node = parent
        return node

    def count_at(self, tokens: Sequence[int], depth: int) -> int:
        """Number of waiting prompts that start with `tokens[:depth]`."""
        node = self.root
        while node.depth < depth:
            child = node.children.get(tokens[node.depth])
            if child is None:
                return 0
            end = min(child.depth, depth)
            if child.tokens[node.depth : end] != array("q", tokens[node.depth : end]):
                return 0
            node = child
        return node.count

    def path(self, key: Key) -> Iterator[Node[Key]]:
        """The nodes from where a prompt ends up to, but without, the root."""
        node: Node[Key] | None = self._leaf_of[key]
        while node is not None and node.parent is not None:
            yield node
            node = node.parent

    def best_child(self, node: Node[Key]) -> Node[Key] | None:
        """The child whose requests save most by running together; ties by arrival.

        Amortized O(log children): entries whose saving changed are dropped when met.
        """
        heap = node.heap
        while heap:
            negative_saving, _, first = heap[0]
            child = node.children.get(first)
            if child is not None and -negative_saving == child.saving_tokens:
                return child
            heapq.heappop(heap)
        return None

    def walk(self, node: Node[Key]) -> Iterator[tuple[Key, Node[Key]]]:
        """Every request below `node`, depth first, best group first at the first step."""
        yield from ((key, node) for key in node.keys)
        best = self.best_child(node)
        if best is not None:
            yield from self.walk_plain(best)
        for child in node.children.values():
            if child is not best:
                yield from self.walk_plain(child)

    def walk_plain(self, node: Node[Key]) -> Iterator[tuple[Key, Node[Key]]]:
        """Every request below `node`, depth first, children in order of arrival."""
        stack = [node]
        while stack:
            top = stack.pop()
            for key in top.keys:
                yield key, top
            stack.extend(reversed(top.children.values()))

    def _grow(self, parent: Node[Key], tokens: array[int]) -> Node[Key]:
        child: Node[Key] = Node(parent, tokens, parent.depth, len(tokens))
        parent.children[tokens[parent.depth]] = child
        return child

    def _split(self, child: Node[Key], depth: int) -> Node[Key]:
        parent = child.parent
        assert parent is not None
        middle: Node[Key] = Node(parent, child.tokens, child.start, depth)
        middle.count = child.count
        middle.children[child.tokens[depth]] = child
        parent.children[child.tokens[child.start]] = middle
        child.parent = middle
        child.start = depth
        self._rank(child)
        self._rank(middle)
        return middle

    def _count(self, leaf: Node[Key], change: int) -> None:
        node: Node[Key] | None = leaf
        while node is not None:
            node.count += change
            self._rank(node)
            node = node.parent

    def _rank(self, node: Node[Key]) -> None:
        parent = node.parent
        if parent is None or node.count == 0:
            return
        self._order += 1
        entry = (-node.saving_tokens, self._order, node.tokens[node.start])
        heapq.heappush(parent.heap, entry)
        if len(parent.heap) > 2 * len(parent.children) + 16:
            self._rebuild_heap(parent)

    def _rebuild_heap(self, parent: Node[Key]) -> None:
        parent.heap = [
            (-child.saving_tokens, order, first)
            for order, (first, child) in enumerate(parent.children.items())
            if child.count > 0
        ]
        heapq.heapify(parent.heap)


def _shared_edge(child: Node[Any], tokens: array[int]) -> int:
    """Depth up to which `tokens` agrees with the edge of `child` (at least one token)."""
    low = child.start + 1
    high = min(child.depth, len(tokens))
    if memoryview(child.tokens)[low:high] == memoryview(tokens)[low:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if child.tokens[low:middle] == tokens[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
