"""SGLang's Python tree core with classes on its nodes and a policy that follows them.

Base: sglang/srt/mem_cache/unified_cache/unified_tree_core.py::UnifiedTreeCore, registered
through tree_core_registry.py. Structure, locks and sizes are SGLang's; this subclass tells
`kv.cache_policy.CachePolicy` what happens to every node. Full attention only: no sliding
window, Mamba state, sessions or host cache (adapter/radix_cache.py refuses those).

What is kept per node and when it changes:

    online, offline   who used it; set on a path from its end to the root, so they only grow
                      towards the root; a split gives both halves the same
    sequence_of       the request that put it there, whose further tokens lengthen it
    online_used_s     last use by an online request; never older than that of a child
    references        only of ranked leaves, in the policy: counted in the prefix index when a
                      leaf is ranked, and again when a prompt through it comes or goes
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeCore, UnifiedTreeNode

from echo_sglang.adapter.tree_key import EchoKey
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.kv.cache_policy import CachePolicy, CachePolicySettings
from echo_sglang.kv.namespaces import Namespaces
from echo_sglang.kv.prefix_index import PrefixIndex

FULL = ComponentType.FULL

SAME_USE_S = 0.05
"""Uses of a path this close together count as one: a request touches it several times."""

TRIM_TOKENS = 128
"""A leaf with a future loses at least this many tokens at once: each cut costs a split."""


UNRANKED_LEAVES = 32
"""Leaves that may wait to be ranked, and as many again before some are: most of them are in
use again soon, and all of them are ranked when one is to be evicted."""


class EchoTreeNode(UnifiedTreeNode):
    """A node that knows who used it."""

    def __init__(self, tree_components: tuple[ComponentType, ...], priority: int = 0) -> None:
        super().__init__(tree_components, priority)
        self.online = False
        self.offline = False
        self.online_used_s = -math.inf
        self.sequence_of: str | None = None

    @property
    def held(self) -> bool:
        """True while a running request needs it."""
        return bool(self.component_data[FULL].lock_ref)

    def classes(self) -> frozenset[ServiceClass]:
        """Which classes of requests used this prefix."""
        marks = ((self.online, ServiceClass.ONLINE), (self.offline, ServiceClass.OFFLINE))
        return frozenset(service_class for marked, service_class in marks if marked)


class _LeafSet(set[EchoTreeNode]):
    """The evictable leaves; says when one comes or goes."""

    def __init__(self, core: EchoTreeCore) -> None:
        super().__init__()
        self._core = core

    def add(self, node: EchoTreeNode) -> None:
        if node not in self:
            super().add(node)
            self._core.became_leaf(node)

    def discard(self, node: EchoTreeNode) -> None:
        if node in self:
            super().discard(node)
            self._core.policy.not_leaf(node)


class EchoTreeCore(UnifiedTreeCore):
    """A radix tree whose evictable leaves are kept in the order of their worth.

    clock: seconds, monotonic; `attach` replaces it together with the prefix index of the
    waiting prompts. for_offline: set while KV is allocated for offline requests only.
    shortfall_tokens: what the allocation that evicts just now lacks, None when the amount
    asked for is the amount to evict.
    """

    def __init__(self, params: Any, components: Any, settings: CachePolicySettings) -> None:
        self.policy: CachePolicy[EchoTreeNode] = CachePolicy(settings)
        self.clock: Callable[[], float] = lambda: 0.0
        self.for_offline = False
        self.shortfall_tokens: int | None = None
        self._requester = ServiceClass.ONLINE
        self._known_path: int | None = None
        self._sequence_of: str | None = None
        self._index: PrefixIndex[Any] = PrefixIndex()
        self._namespaces = Namespaces()
        super().__init__(params, components)
        # Whoever hears of new blocks is told of nodes, not of parts of them.
        self.lengthens_nodes = self.policy.by_value and not self.kv_events.enabled

    def attach(
        self, clock: Callable[[], float], index: PrefixIndex[Any], namespaces: Namespaces
    ) -> None:
        """Follow this clock and these waiting prompts. Call while the tree is empty."""
        assert not self.evictable_device_leaves
        self.clock, self._index, self._namespaces = clock, index, namespaces

    def reset(self) -> None:
        """Flush: no nodes, no leaves; what was learned about reuse stays."""
        super().reset()
        self.policy.clear()
        self.evictable_device_leaves = _LeafSet(self)

    @contextmanager
    def used_by(
        self,
        service_class: ServiceClass,
        known_path: int | None = None,
        sequence_of: str | None = None,
    ) -> Iterator[None]:
        """Inserts inside are the work of this class.

        known_path: id of the node that the inserting request holds, whose path is the
        beginning of what it inserts; None if it holds none. The walk starts there.
        sequence_of: id of the inserting request.
        """
        before = self._requester, self._known_path, self._sequence_of
        self._requester, self._known_path = service_class, known_path
        self._sequence_of = sequence_of
        try:
            yield
        finally:
            self._requester, self._known_path, self._sequence_of = before

    @contextmanager
    def allocating_for(self, *, offline: bool) -> Iterator[None]:
        """Evictions inside make room for offline requests only, if `offline`."""
        before, self.for_offline = self.for_offline, offline
        try:
            yield
        finally:
            self.for_offline = before

    # ------------------------------------------------------------------ nodes

    def _new_node(self, priority: int = 0) -> EchoTreeNode:
        node = EchoTreeNode(self.component_types, priority=priority)
        if self._requester is ServiceClass.ONLINE:
            node.online, node.online_used_s = True, self.clock()
        else:
            node.offline = True
        self._register_node(node)
        return node

    def _add_new_node(
        self, parent: EchoTreeNode, key: EchoKey, value: torch.Tensor, **kwargs: Any
    ) -> EchoTreeNode:
        """As upstream's, but what a request adds to its own tokens lengthens their node while
        nobody shares it: a node for every chunk and for the answer would be locked, walked and
        evicted one by one."""
        if self.lengthens_nodes and self._ends_with(parent):
            self._lengthen(parent, key, value)
            return parent
        node = super()._add_new_node(parent, key, value, **kwargs)
        node.sequence_of = self._sequence_of
        return node

    def _ends_with(self, node: EchoTreeNode) -> bool:
        """The inserting request put it there and alone holds it, only its class used it, and
        nothing follows."""
        rid = self._sequence_of
        if rid is None or node.sequence_of != rid or node.children:
            return False
        online = self._requester is ServiceClass.ONLINE
        alone = node.component_data[FULL].lock_ref == 1
        return alone and node.online is online and node.offline is not online

    def _lengthen(self, node: EchoTreeNode, key: EchoKey, value: torch.Tensor) -> None:
        """Of a node in use. Who found it before as the end of something cached still does."""
        full = node.component_data[FULL]
        full.value = torch.cat([full.value, value])
        node.key = node.key.followed_by(key)
        self.component_protected_size_[FULL] += len(key)

    def begin_insert(self, params: Any) -> Any:
        """With a key that is quick to walk along; its parts become those of nodes. The caller's
        `params` hold it afterwards."""
        params.key = EchoKey.of(params.key)
        return super().begin_insert(params)

    def _split_node(self, key: RadixKey, child: EchoTreeNode, split_len: int) -> Any:
        head, action = super()._split_node(key, child, split_len)
        head.online, head.offline = child.online, child.offline
        head.online_used_s = child.online_used_s
        self.policy.resized(child, len(child.key))
        self.became_idle(head)
        return head, action

    def _advance_insert(self) -> Any:
        if self._known_path is not None:
            self._skip_known_path(self._ongoing_insert_walk_state, self._known_path)
        step = super()._advance_insert()
        if step.result is not None:
            self.mark_path(self.node_by_id(step.result.last_device_node), self._requester)
        return step

    def _skip_known_path(self, walk: Any, known_path: int) -> None:
        """Start an insert below what its request holds, where there is nothing to add or free.

        Only recency, hit counts and priorities of the nodes passed over stay as they were;
        nothing here evicts by them. A chunked prompt holds a node for every chunk, so that
        walking from the root makes the chunks of a prompt cost their square.
        """
        if walk.node is not self.root_node:
            return
        node = self.node_by_id(known_path)
        depth = self._depth(node)
        most = min(len(walk.key), walk.params.prev_prefix_len)
        while depth > most:
            depth -= len(node.key)
            node = node.parent
        if depth:
            walk.node, walk.total_prefix_length = node, depth
            walk.key, walk.value = walk.key[depth:], walk.value[depth:]

    def _depth(self, node: EchoTreeNode) -> int:
        """Tokens from the root to the end of `node`."""
        depth = 0
        while node is not self.root_node:
            depth += len(node.key.token_ids)
            node = node.parent
        return depth

    def _remove_leaf_from_parent(self, node: EchoTreeNode) -> None:
        super()._remove_leaf_from_parent(node)
        self.policy.held(node)

    def mark_path(self, node: EchoTreeNode, service_class: ServiceClass) -> None:
        """This class uses the path from the root to `node` now. O(nodes newly marked)."""
        if service_class is ServiceClass.ONLINE:
            self._mark_online(node)
            return
        above: EchoTreeNode | None = node
        while above is not self.root_node and not (above.offline and above is not node):
            above.offline = True
            above = above.parent

    def _mark_online(self, node: EchoTreeNode) -> None:
        now_s, root = self.clock(), self.root_node
        same_use_s = now_s - SAME_USE_S
        above = node
        while above is not root:
            if above.online_used_s < same_use_s:
                above.online, above.online_used_s = True, now_s
                if not above.component_data[FULL].lock_ref:
                    self.became_idle(above)
            elif above is not node:
                break
            above = above.parent

    def became_idle(self, node: EchoTreeNode) -> None:
        """Nobody holds `node`: if it is an online one, it ages from its last use on."""
        if node.online and not node.held:
            self.policy.idle(
                node, used_s=node.online_used_s, tokens=len(node.key), now_s=self.clock()
            )

    def _update_evictable_leaf_sets(self, node: EchoTreeNode) -> None:
        """As upstream's, where everything is on the device: every child holds KV there, and the
        host has no leaves. Asked several times by every operation."""
        full = node.component_data[FULL]
        if node.children or full.lock_ref or full.value is None or node is self.root_node:
            self.evictable_device_leaves.discard(node)
        else:
            self.evictable_device_leaves.add(node)

    def _inc_hit_count_and_check(self, node: EchoTreeNode) -> bool:
        """There is no host cache to back it up to, however often it is hit."""
        node.hit_count += 1
        return False

    def became_leaf(self, node: EchoTreeNode) -> None:
        """`node` may be evicted from now on."""
        policy, now_s, tokens = self.policy, self.clock(), len(node.key.token_ids)
        if node.online and node not in policy.ages:
            policy.idle(node, used_s=node.online_used_s, tokens=tokens, now_s=now_s)
        policy.leaf(node, tokens=tokens, now_s=now_s)
        if policy.num_unranked > 2 * UNRANKED_LEAVES:
            policy.rank(self.references_of, keep=UNRANKED_LEAVES)

    def begins_cached(self, tokens: array[int]) -> bool:
        """False if nothing is cached of what begins with `tokens`, in the namespace without extra
        key and salt. True if there is more to look at."""
        page = self.page_size
        if len(tokens) < page:
            return True
        return RadixKey(tokens).child_key_at(0, page) in self.root_node.children

    def is_cached(self, node_id: int) -> bool:
        """True while the node is in the tree; what leads to its end is cached as long."""
        return node_id in self._node_arena

    def held_alone(self, node_id: int) -> int:
        """Tokens on the path to a node that one request alone holds, if it holds that node."""
        node, root, tokens = self.node_by_id(node_id), self.root_node, 0
        while node is not root and node.component_data[FULL].lock_ref == 1:
            tokens += len(node.key.token_ids)
            node = node.parent
        return tokens

    # ------------------------------------------------------- future references

    def references_of(self, node: EchoTreeNode) -> int:
        """Waiting offline requests whose prompt passes through the whole of `node`."""
        if not len(self._index):
            return 0
        tokens = self._marked_path(node)
        return self._index.uses(tokens, len(tokens)).waiting

    def references_changed(
        self, tokens: array[int], extra_key: str | None, cache_salt: str | None
    ) -> None:
        """A prompt came into the prefix index or left it: rank the one leaf it can concern.

        tokens: int64 ids without the mark of their namespace. O(nodes on the way).
        """
        key = RadixKey(tokens, extra_key, cache_salt=cache_salt)
        node, matched, _, _ = self._descend(key)
        if node in self.policy.order:
            mark = self._namespaces.mark(extra_key, cache_salt)
            uses = self._index.uses(mark + tokens[:matched], len(mark) + matched)
            self.policy.refer(node, uses.waiting)

    def online_arrived(self, key: RadixKey) -> None:
        """An online request arrived: learn from the leaf it will use again, and keep it."""
        node, _, part, part_tokens = self._descend(key)
        if part is not None and part in self.evictable_device_leaves:
            self.policy.online_hit(part, part_tokens)
        elif node in self.evictable_device_leaves:
            self.policy.online_hit(node, len(node.key))
        self._mark_online(node)

    def match_full_device_prefix(self, key: RadixKey) -> tuple[int, int, int]:
        """Cached tokens of `key`, without splitting a node or touching its recency.

        Returns (tokens matched, node id, tokens up to the end of that node), as upstream's.
        """
        node, matched, part, part_tokens = self._descend(key)
        if part is None:
            return matched, node.id, matched
        return matched + part_tokens, part.id, matched + len(part.key)

    def _descend(self, key: RadixKey) -> tuple[EchoTreeNode, int, EchoTreeNode | None, int]:
        """(deepest node wholly on `key`, tokens up to its end, child partly on it, tokens)."""
        node, offset, page = self.root_node, 0, self.page_size
        tokens, end = key.token_ids, len(key)
        while offset + page <= end:
            child = node.children.get(key.child_key_at(offset, page))
            if child is None or child.component_data[FULL].value is None:
                break
            edge = child.key.token_ids
            after = offset + len(edge)
            if after > end or tokens[offset:after] != edge:
                return node, offset, child, child.key.match_at(key, offset, page)
            node, offset = child, after
        return node, offset, None, 0

    def _marked_path(self, node: EchoTreeNode) -> array[int]:
        """The tokens from the root to the end of `node`, as the prefix index sees them."""
        keys = []
        while node is not self.root_node:
            keys.append(node.key)
            node = node.parent
        tokens = self._namespaces.mark(keys[-1].extra_key, keys[-1].cache_salt)[:]
        for key in reversed(keys):
            tokens.extend(key.token_ids)
        return tokens

    # --------------------------------------------------------------- eviction

    def next_victim(self, wanted_tokens: int, passed_over: set[EchoTreeNode]) -> Any:
        """The leaf to evict next, cut to what has to go; None if there is none.

        Of a leaf with a future no more goes than is wanted, and tokens that more waiting
        prompts need than its end stay: its tail becomes a leaf of its own, which is returned.
        """
        self.policy.rank(self.references_of)
        victim = self.policy.victim(for_offline=self.for_offline, passed_over=passed_over)
        if victim is None:
            return None
        keep = self._tokens_to_keep(victim, wanted_tokens)
        if 0 < keep < len(victim.key):
            self._split_node(victim.key, victim, keep)
        self.policy.evicted(victim, len(victim.key))
        return victim

    def rank(self) -> None:
        """Give every new leaf its place in the order of eviction."""
        self.policy.rank(self.references_of)

    def victim_hits(self) -> float:
        """Expected future hits of a token of the leaf that offline work would evict next, of
        those ranked."""
        if not self.policy.by_value:
            return 0.0
        victim = self.policy.victim(for_offline=True)
        return 0.0 if victim is None else self.policy.worth(victim)

    def _tokens_to_keep(self, victim: EchoTreeNode, wanted_tokens: int) -> int:
        if not self.policy.by_value:
            return 0
        tokens = len(victim.key)
        keep = 0
        if len(self._index):
            path = self._marked_path(victim)
            start = len(path) - tokens
            keep = max(self._index.uses(path, len(path)).shared_depth - start, 0)
        if self.policy.worth(victim) > 0:
            keep = max(keep, tokens - max(wanted_tokens, TRIM_TOKENS))
        return keep // self.page_size * self.page_size
