"""What the KV cache keeps: the one place that knows the worth of a cached node.

worth(node) = weight(online) * expected online hits by age + number of waiting offline
requests that pass through it (policy of Echo, arXiv 2504.03651, with exact references instead
of its estimate). Evicted in rising worth, the least recently used first among equals.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Generic, TypeVar

from echo_sglang.config import EvictionPolicy
from echo_sglang.kv.ages import AgeBuckets
from echo_sglang.kv.eviction_order import OFFLINE_ONLY, EvictionOrder
from echo_sglang.kv.reuse import NUM_BUCKETS, ReuseByAge

Node = TypeVar("Node")

ALL_QUEUES = range(NUM_BUCKETS + 1)

OFFLINE_WORK_WORTH = 1.0
"""What offline work gains by a token of room: that token, computed once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicySettings:
    """online_weight: offline hits that one online hit is worth; 0 ignores online reuse.
    policy: VALUE or CLASS_LRU."""

    online_weight: float = 4.0
    policy: EvictionPolicy = EvictionPolicy.VALUE

    def __post_init__(self) -> None:
        assert math.isfinite(self.online_weight) and self.online_weight >= 0
        assert self.policy is not EvictionPolicy.LRU


class CachePolicy(Generic[Node]):
    """Follows the nodes of a cache tree through use, idleness and eviction.

    The tree says what happens, in these verbs; the policy names victims. A node is idle while
    nobody holds it; an idle node without cached children is a leaf and may be evicted. Online
    nodes (used by an online request at least once) age while they are idle.
    """

    def __init__(self, settings: CachePolicySettings) -> None:
        self._settings = settings
        self._by_value = settings.policy is EvictionPolicy.VALUE
        self.reuse = ReuseByAge()
        self._unranked: OrderedDict[Node, None] = OrderedDict()
        self.order: EvictionOrder[Node] = EvictionOrder()
        self.ages: AgeBuckets[Node] = AgeBuckets()

    @property
    def by_value(self) -> bool:
        """True if references and learned reuse count, not the class alone."""
        return self._by_value

    def clear(self) -> None:
        """The tree was flushed; what was learned stays."""
        self.order = EvictionOrder()
        self.ages = AgeBuckets()
        self._unranked.clear()

    def idle(self, node: Node, *, used_s: float, tokens: int, now_s: float) -> None:
        """An online node is held by nobody, last used by an online request at `used_s`.

        If it is a leaf already, it becomes the most recently used one.
        """
        bucket = self.ages.enter(node, used_s=used_s, tokens=tokens, now_s=now_s)
        if node in self.order:
            references = self.order.references(node)
            self.order.discard(node)
            self.order.add(node, queue=self._queue(bucket), references=references)
            self.reuse.entered(bucket, tokens, now_s)

    def held(self, node: Node) -> None:
        """An online node is in use again, or gone."""
        self.ages.leave(node)

    def leaf(self, node: Node, *, tokens: int, now_s: float) -> None:
        """A node may be evicted from now on. An online one must be `idle` already.

        It is ranked later (`rank`): most leaves are in use again before that.
        """
        self._unranked[node] = None
        bucket = self.ages.bucket(node)
        if bucket is not None:
            self.reuse.entered(bucket, tokens, now_s)

    def not_leaf(self, node: Node) -> None:
        """A node may not be evicted for now, or was."""
        if node in self._unranked:
            del self._unranked[node]
        else:
            self.order.discard(node)

    @property
    def num_unranked(self) -> int:
        """Leaves that are not in the order of eviction yet."""
        return len(self._unranked)

    def rank(self, references_of: Callable[[Node], int], *, keep: int = 0) -> None:
        """Put leaves into the order of eviction, first come first, until `keep` are left."""
        while len(self._unranked) > keep:
            node, _ = self._unranked.popitem(last=False)
            bucket = self.ages.bucket(node)
            queue = OFFLINE_ONLY if bucket is None else self._queue(bucket)
            references = references_of(node) if self._by_value else 0
            self.order.add(node, queue=queue, references=references)

    def resized(self, node: Node, tokens: int) -> None:
        """The tree split a node: this many tokens of it are left."""
        self.ages.resize(node, tokens)

    def refer(self, leaf: Node, references: int) -> None:
        """The number of waiting requests that pass through a leaf changed."""
        if self._by_value and leaf in self.order:
            self.order.refer(leaf, references)

    def online_hit(self, leaf: Node, tokens: int) -> None:
        """An online request arrived that can use `tokens` of an evictable leaf."""
        bucket = self.ages.bucket(leaf)
        if bucket is not None:
            self.reuse.hit(bucket, tokens)

    def evicted(self, leaf: Node, tokens: int) -> None:
        """`tokens` of a leaf are about to go."""
        bucket = self.ages.bucket(leaf)
        if bucket is not None:
            self.reuse.evicted(bucket, tokens)

    def relearn(self, now_s: float) -> None:
        """Let nodes age and what was seen since count; worths stay as they are until the next
        time, but for ageing, which never raises one. Once an iteration."""
        self.grow_older(now_s)
        self.reuse.relearn()

    def grow_older(self, now_s: float) -> None:
        """Let idle online nodes age; nothing is done for those that crossed no edge."""
        for node, bucket in self.ages.advance(now_s):
            ranked = node in self.order
            if ranked:
                self.order.move(node, self._queue(bucket))
            if ranked or node in self._unranked:
                self.reuse.entered(bucket, self.ages.tokens_of(node), now_s)

    def victim(self, *, for_offline: bool, passed_over: Container[Node] = ()) -> Node | None:
        """The leaf to evict next, None if there is none; of those ranked, see `rank`.

        for_offline: online leaves worth more than the work they would make room for are
        taken only when nothing else is left.
        """
        if for_offline:
            allowed = [queue for queue in ALL_QUEUES if not self.protects(queue)]
            victim = self.order.victim(self.online_worth, queues=allowed, passed_over=passed_over)
            if victim is not None:
                return victim
        return self.order.victim(self.online_worth, queues=ALL_QUEUES, passed_over=passed_over)

    def worth(self, leaf: Node) -> float:
        """Weighted future hits that evicting this leaf would lose. Raises KeyError for a node
        that may not be evicted."""
        return self.online_worth(self.order.queue(leaf)) + self.order.references(leaf)

    def online_worth(self, queue: int) -> float:
        """The online part of the worth of leaves in one queue."""
        if queue == OFFLINE_ONLY:
            return 0.0
        if not self._by_value:
            return math.inf
        return self._settings.online_weight * self.reuse.expected(queue)

    def protected_tokens(self) -> int:
        """Idle online KV that offline work must not evict."""
        held = ((bucket, self.ages.tokens_in(bucket)) for bucket in range(NUM_BUCKETS))
        return sum(tokens for bucket, tokens in held if tokens and self.protects(bucket))

    def protects(self, queue: int) -> bool:
        """True if offline work must leave leaves of this queue alone."""
        return self._by_value and self.online_worth(queue) > OFFLINE_WORK_WORTH

    def _queue(self, bucket: int) -> int:
        """By class and recency alone, all online leaves share the first queue."""
        return bucket if self._by_value else 0
