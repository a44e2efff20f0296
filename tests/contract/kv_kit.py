"""Echo's tree core in SGLang's own cache, with SGLang's own test fixtures."""

from __future__ import annotations

from array import array
from functools import partial
from typing import Any
from unittest import mock

import sglang.srt.utils  # noqa: F401  (must come before sglang.srt.platforms)
import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, TreeLock
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache import tree_core_registry
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.test.kits.unified_radix_cache import fixtures
from sglang.test.kits.unified_radix_cache.config import CacheConfig
from sglang.test.kits.unified_radix_cache.unified_tree_core_inspector import (
    UnifiedTreeCoreInspector,
)

from echo_sglang.adapter.radix_cache import BACKEND, EchoFullComponent, EchoRadixCache
from echo_sglang.adapter.tree_core import EchoTreeCore, EchoTreeNode
from echo_sglang.config import EvictionPolicy
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.kv.cache_policy import CachePolicySettings
from echo_sglang.kv.namespaces import Namespaces
from echo_sglang.kv.prefix_index import PrefixIndex

ONLINE, OFFLINE = ServiceClass.ONLINE, ServiceClass.OFFLINE


class EchoInspector(EchoTreeCore, UnifiedTreeCoreInspector):
    """Echo's core with the white-box methods that SGLang's fixtures ask for."""


def build_echo_fixture(config: CacheConfig, settings: CachePolicySettings, **kwargs: Any) -> Any:
    """SGLang's `build_fixture` on Echo's core: (cache, allocator, req_to_token_pool)."""
    core = partial(EchoInspector, settings=settings)
    with (
        mock.patch.dict(tree_core_registry._TREE_CORE_REGISTRY, {BACKEND: core}),
        mock.patch.object(fixtures, "UnifiedRadixCache", EchoRadixCache),
        mock.patch.object(fixtures, "get_device", lambda: "cpu"),
    ):
        return fixtures.build_fixture(
            config,
            tree_core_backend=BACKEND,
            component_registry_override={ComponentType.FULL: EchoFullComponent},
            **kwargs,
        )


class CacheKit:
    """A small cache on a clock of its own, and the waiting prompts that refer to it."""

    def __init__(
        self,
        *,
        kv_size: int = 256,
        page_size: int = 1,
        online_weight: float = 4.0,
        policy: EvictionPolicy = EvictionPolicy.VALUE,
    ) -> None:
        config = CacheConfig(
            page_size=page_size, kv_size=kv_size, num_layers=1, full_attention_layer_ids=(0,)
        )
        settings = CachePolicySettings(online_weight=online_weight, policy=policy)
        self.cache, self.allocator, self.rows = build_echo_fixture(config, settings)
        self.core: EchoInspector = self.cache.tree_core
        self.policy = self.core.policy
        self.now_s = 1000.0
        self.index: PrefixIndex[str] = PrefixIndex()
        self.core.attach(lambda: self.now_s, self.index, Namespaces())

    def insert(self, tokens: list[int], service_class: ServiceClass) -> bool:
        """Cache a sequence as a finished request would; False if there is no room."""
        missing = len(tokens) - self.allocator.available_size()
        if missing > 0:
            self.evict(missing, for_offline=service_class is OFFLINE)
        value = self.allocator.alloc(len(tokens))
        if value is None:
            return False
        page = self.core.page_size
        whole = len(tokens) // page * page
        if whole < len(tokens):
            self.allocator.free(value[whole:])
        with self.core.used_by(service_class):
            self.cache.insert(InsertParams(key=key_of(tokens), value=value[:whole]))
        return True

    def go_on(
        self, lock: TreeLock, tokens: list[int], service_class: ServiceClass, rid: str
    ) -> TreeLock:
        """Cache more of a sequence whose beginning `lock` holds, as the chunks of the prompt of
        `rid` do; returns the lock of all of it. There must be room."""
        held = len(self.path(self.core.node_by_id(lock.node)))
        value = self.core.collect_full_device_indices(lock.node, self.core.root_node.id)
        value = torch.cat([value, self.allocator.alloc(len(tokens) - held)])
        with self.core.used_by(service_class, known_path=lock.node, sequence_of=rid):
            inserted = self.cache.insert(
                InsertParams(key=key_of(tokens), value=value, prev_prefix_len=held)
            )
        longer: TreeLock = self.cache.lock(inserted.last_device_node)
        self.cache.unlock(lock)
        return longer

    def wait(self, rid: str, tokens: list[int]) -> None:
        """A prompt begins to wait in the offline pool."""
        self.index.insert(rid, array("q", tokens))
        self.core.references_changed(array("q", tokens), None, None)

    def go(self, rid: str) -> None:
        """A prompt waits no longer."""
        tokens = self.index.tokens(rid)
        self.index.remove(rid)
        self.core.references_changed(tokens, None, None)

    def arrive(self, tokens: list[int]) -> None:
        """An online request arrives."""
        self.core.online_arrived(key_of(tokens))

    def evict(self, tokens: int, *, for_offline: bool = False) -> int:
        """Evict for an allocation that lacks this many tokens; returns how many went."""
        with self.core.allocating_for(offline=for_offline):
            before = self.allocator.available_size()
            self.cache.evict_for_alloc(EvictParams(num_tokens=tokens))
            return int(self.allocator.available_size() - before)

    def cached(self, tokens: list[int]) -> int:
        """How many leading tokens are in the cache."""
        return int(self.core.match_full_device_prefix(key_of(tokens))[0])

    def nodes(self) -> list[EchoTreeNode]:
        """All nodes but the root."""
        root = self.core.root_node
        return [node for node in self.core._node_arena.values() if node is not root]

    def path(self, node: EchoTreeNode) -> list[int]:
        """The tokens from the root to the end of a node."""
        return path_of(self.core, node)


def path_of(core: EchoInspector, node: EchoTreeNode) -> list[int]:
    """The tokens from the root of a tree to the end of a node."""
    tokens: list[int] = []
    while node is not core.root_node:
        tokens = [*node.key.raw_token_ids(), *tokens]
        node = node.parent
    return tokens


def key_of(tokens: list[int]) -> RadixKey:
    return RadixKey(array("q", tokens))
