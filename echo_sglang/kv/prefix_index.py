"""A compressed radix trie over the prompts of waiting offline requests.

It answers what shares a prefix with what, and keeps every token that prompts share once:
an edge owns its tokens, a prompt is the edges on its way. Every node counts the requests
below it, so the number of future uses of any prefix is one walk away, and every node keeps
its children ordered by the prefill they would save, so the best group is found without
looking at all of them.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

Key = TypeVar("Key")


class Uses(NamedTuple):
    """Future uses of one span of a path.

    waiting: prompts that pass through its end.
    shared_depth: the deepest point before its end through which more of them pass; 0 if there
    is none. What lies after it may be dropped without loss to those.
    """

    waiting: int
    shared_depth: int


class Node(Generic[Key]):
    """A point in the trie. `depth` tokens lead to it, the last of them are its edge `tokens`;
    `count` requests pass through it."""

    __slots__ = ("children", "count", "depth", "gone", "heap", "keys", "parent", "tokens")

    def __init__(self, parent: Node[Key] | None, tokens: array[int], depth: int):
        self.parent = parent
        self.tokens = tokens
        self.depth = depth
        self.count = 0
        self.gone = 0
        self.keys: dict[Key, None] = {}
        self.children: dict[int, Node[Key]] = {}
        self.heap: list[tuple[int, int, int]] = []

    @property
    def edge_tokens(self) -> int:
        """Length of the edge that leads here."""
        return len(self.tokens)

    @property
    def saving_tokens(self) -> int:
        """Prefill saved if all requests below share this edge's KV."""
        return (self.count - 1) * len(self.tokens)

    def drop(self, *, key: Key | None = None, first_token: int | None = None) -> None:
        """Take a key or a child out.

        A dict keeps the places of what was deleted, and walking it from the front passes them
        all: it is rebuilt once they are the larger part.
        """
        if first_token is None:
            del self.keys[key]  # type: ignore[arg-type]
        else:
            del self.children[first_token]
        self.gone += 1
        if self.gone > len(self.keys) + len(self.children) + 16:
            self.keys, self.children, self.gone = dict(self.keys), dict(self.children), 0


class PrefixIndex(Generic[Key]):
    """Counts waiting prompts per prefix. Insert and remove cost O(prompt length) compares.

    Keys are unique and opaque. Prompts (int64 ids) are copied, what they share only once.
    """

    def __init__(self) -> None:
        self.root: Node[Key] = Node(None, array("q"), 0)
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
            elif (shared := _shared_edge(child, tokens, node.depth, len(tokens))) < child.depth:
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
        leaf.drop(key=key)
        self._count(leaf, -1)
        node = leaf
        while node.count == 0 and node.parent is not None:
            parent = node.parent
            parent.drop(first_token=node.tokens[0])
            node = parent
        return node

    def tokens(self, key: Key) -> array[int]:
        """The prompt of `key`, a fresh array. Raises KeyError on an unknown key."""
        edges = [self._leaf_of[key].tokens]
        edges.extend(node.tokens for node in self.ancestors(key))
        prompt = array("q")
        for edge in reversed(edges):
            prompt.extend(edge)
        return prompt

    def first_edge(self, key: Key) -> array[int]:
        """The edge from the root that a prompt begins with, not to be changed. Raises KeyError on
        an unknown key."""
        node = self._leaf_of[key]
        while node.parent is not None and node.parent is not self.root:
            node = node.parent
        return node.tokens

    def uses(self, tokens: array[int], end: int) -> Uses:
        """Future uses of `tokens[:end]`, in one walk along it."""
        node = self.root
        while node.depth < end:
            child = node.children.get(tokens[node.depth])
            if child is None:
                return Uses(0, node.depth)
            if child.depth > end or child.tokens != tokens[node.depth : child.depth]:
                shared = _shared_edge(child, tokens, node.depth, end)
                if shared < min(child.depth, end):
                    return Uses(0, shared)
            node = child
        above = node.parent
        while above is not None and above.count == node.count:
            above = above.parent
        return Uses(node.count, 0 if above is None else above.depth)

    def along(self, tokens: array[int]) -> Iterator[tuple[Node[Key], int]]:
        """The nodes that a prompt, which need not be in, passes through or ends in, shallowest
        first, each with the depth up to which the prompt agrees with it."""
        node = self.root
        while node.depth < len(tokens):
            child = node.children.get(tokens[node.depth])
            if child is None:
                return
            shared = _shared_edge(child, tokens, node.depth, len(tokens))
            yield child, shared
            if shared < child.depth:
                return
            node = child

    def end(self, key: Key) -> Node[Key]:
        """The node where a prompt ends. Raises KeyError on an unknown key."""
        return self._leaf_of[key]

    def is_below(self, key: Key, node: Node[Key]) -> bool:
        """True if a prompt passes through a node that is not the root, or ends in it. Raises
        KeyError on an unknown key."""
        at = self._leaf_of[key]
        while at.parent is not None and at.depth >= node.depth:
            if at is node:
                return True
            at = at.parent
        return False

    def ancestors(self, key: Key) -> Iterator[Node[Key]]:
        """The nodes strictly between the root and where a prompt ends, deepest first."""
        node = self._leaf_of[key].parent
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
        walked: list[Iterator[Node[Key]]] = [iter((node,))]
        while walked:
            top = next(walked[-1], None)
            if top is None:
                walked.pop()
                continue
            for key in top.keys:
                yield key, top
            walked.append(iter(top.children.values()))

    def _grow(self, parent: Node[Key], tokens: array[int]) -> Node[Key]:
        child: Node[Key] = Node(parent, tokens[parent.depth :], len(tokens))
        parent.children[child.tokens[0]] = child
        return child

    def _split(self, child: Node[Key], depth: int) -> Node[Key]:
        parent = child.parent
        assert parent is not None
        cut = depth - parent.depth
        middle: Node[Key] = Node(parent, child.tokens[:cut], depth)
        child.tokens = child.tokens[cut:]
        middle.count = child.count
        middle.children[child.tokens[0]] = child
        parent.children[middle.tokens[0]] = middle
        child.parent = middle
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
        entry = (-node.saving_tokens, self._order, node.tokens[0])
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


def _shared_edge(child: Node[Any], tokens: array[int], start: int, end: int) -> int:
    """Depth up to which `tokens[:end]` agrees with the edge of `child` that begins at `start`,
    where they agree on the first token."""
    edge = child.tokens
    high = min(len(edge), end - start)
    if edge[:high] == tokens[start : start + high]:
        return start + high
    low = 1
    while low < high:
        middle = (low + high + 1) // 2
        if edge[low:middle] == tokens[start + low : start + middle]:
            low = middle
        else:
            high = middle - 1
    return start + low
