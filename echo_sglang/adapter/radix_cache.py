"""Echo's radix cache: registered with SGLang, built by its factory, evicting by worth.

Seams: `register_radix_cache_backend` (sglang/srt/mem_cache/registry.py) and
`register_tree_core_backend` (unified_cache/tree_core_registry.py); the component that picks
victims is replaced through `CacheInitParams.component_registry_override`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.base_prefix_cache import (
    EvictParams,
    EvictResult,
    InsertParams,
    InsertResult,
)
from sglang.srt.mem_cache.registry import (
    TreeCacheBuildContext,
    create_unified_radix_cache,
    default_radix_cache_factory,
    register_radix_cache_backend,
)
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.srt.mem_cache.unified_cache.components.full import FullComponent
from sglang.srt.mem_cache.unified_cache.tree_core_registry import register_tree_core_backend
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from echo_sglang.adapter.requests import is_offline
from echo_sglang.adapter.tree_core import EchoTreeCore, EchoTreeNode
from echo_sglang.config import EchoConfig, EvictionPolicy
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.errors import IncompatibleError
from echo_sglang.kv.cache_policy import CachePolicySettings

BACKEND = "echo"
"""The name of Echo's radix cache and tree core in SGLang's registries."""


class EchoFullComponent(FullComponent):
    """Full attention KV: victims come from the policy's order, no heap is built.

    Base: sglang/srt/mem_cache/unified_cache/components/full.py::FullComponent.
    """

    tree_core: EchoTreeCore

    def __init__(self, cache: Any, params: Any) -> None:
        super().__init__(cache, params)
        self._wanted_tokens = 0
        self._last: EchoTreeNode | None = None
        self._passed_over: set[EchoTreeNode] = set()

    def _evict_device_start(self, request_cnt: int) -> None:
        self._wanted_tokens = request_cnt
        self.tree_core.policy.grow_older(self.tree_core.clock())

    def _evict_device_next_node(
        self, tracker: dict[ComponentType, int], *args: Any, **kwargs: Any
    ) -> int | None:
        evicted = tracker[self.component_type]
        if evicted >= self._wanted_tokens:
            return None
        if self._last is not None and self._last in self.tree_core.evictable_device_leaves:
            self._passed_over.add(self._last)
        short = self.tree_core.shortfall_tokens
        wanted = self._wanted_tokens if short is None else short
        self._last = self.tree_core.next_victim(max(wanted - evicted, 1), self._passed_over)
        return None if self._last is None else self._last.id

    def _evict_device_end(self) -> None:
        self._last = None
        self._passed_over = set()

    def acquire_component_lock(self, node: EchoTreeNode, *args: Any, **kwargs: Any) -> Any:
        """Nodes that come into use no longer age."""
        above = node
        while above is not self.tree_core.root_node and not above.held:
            self.tree_core.policy.held(above)
            above = above.parent
        return super().acquire_component_lock(node, *args, **kwargs)

    def release_component_lock(self, node: EchoTreeNode, *args: Any, **kwargs: Any) -> None:
        """Nodes that nobody holds any more begin to age."""
        super().release_component_lock(node, *args, **kwargs)
        above = node
        while above is not self.tree_core.root_node and not above.held:
            if above not in self.tree_core.policy.ages:
                self.tree_core.became_idle(above)
            above = above.parent


class EchoRadixCache(UnifiedRadixCache):
    """SGLang's cache on Echo's tree core."""

    _checkpointing = False
    _inserted: InsertResult | None = None

    def evict_for_alloc(self, params: EvictParams, **kwargs: Any) -> EvictResult:
        """As upstream's, telling the core how little has to go."""
        self.tree_core.shortfall_tokens = params.num_tokens
        try:
            return super().evict_for_alloc(params, **kwargs)
        finally:
            self.tree_core.shortfall_tokens = None

    def checkpoint_into_tree(self, req: Req, *, up_to: int, **kwargs: Any) -> None:
        """As upstream's; what it inserts carries the class of the request."""
        service_class = ServiceClass.OFFLINE if is_offline(req) else ServiceClass.ONLINE
        known_path = None if req.lock is None else req.lock.node
        self._checkpointing, self._inserted = True, None
        try:
            with self.tree_core.used_by(service_class, known_path, req.rid):
                super().checkpoint_into_tree(req, up_to=up_to, **kwargs)
        finally:
            self._checkpointing = False

    def insert(self, params: InsertParams) -> InsertResult:
        """As upstream's, but for the second insert of a checkpoint: it would only cut the node
        where the prompt ends, for the answer to be evicted alone, and Echo's eviction cuts."""
        if not self._checkpointing:
            return super().insert(params)
        if self._inserted is None or not self.tree_core.lengthens_nodes:
            self._inserted = super().insert(params)
        return self._inserted


def register(config: EchoConfig) -> None:
    """Make `--radix-cache-backend echo` known to SGLang, unless SGLang's cache is wanted."""
    policy = EvictionPolicy(config.eviction)
    if policy is EvictionPolicy.LRU:
        return
    settings = CachePolicySettings(online_weight=config.online_weight, policy=policy)
    register_tree_core_backend(BACKEND, partial(EchoTreeCore, settings=settings))
    register_radix_cache_backend(BACKEND, build_echo_cache)


def build_echo_cache(ctx: TreeCacheBuildContext) -> Any:
    """The factory behind `--radix-cache-backend echo`.

    With the radix cache disabled there is nothing to evict: SGLang's own is built. Raises
    IncompatibleError for caches whose parts the policy does not rank.
    """
    if ctx.disable_radix_cache:
        return default_radix_cache_factory(ctx)
    if ctx.is_hybrid_ssm:
        raise IncompatibleError(
            "Echo cannot release requests of models with Mamba or other state-space layers: their "
            "state is no KV; use --echo-off, which serves as stock SGLang does"
        )
    for holds, given in _unranked(ctx):
        if holds:
            raise IncompatibleError(
                f"--echo-eviction {EvictionPolicy.VALUE} and {EvictionPolicy.CLASS_LRU} rank "
                f"full-attention KV on the device only, not {given}; use --echo-eviction "
                f"{EvictionPolicy.LRU}, which serves with SGLang's own cache"
            )
    ctx.params.component_registry_override = {ComponentType.FULL: EchoFullComponent}
    ctx.params.tree_core_backend = BACKEND
    return create_unified_radix_cache(ctx, cache_class=EchoRadixCache)


def _unranked(ctx: TreeCacheBuildContext) -> list[tuple[bool, str]]:
    params = ctx.params
    return [
        (ctx.is_hybrid_swa, "the sliding-window layers of this model"),
        (ctx.enable_hierarchical_cache, "a host cache (--enable-hierarchical-cache)"),
        (params.enable_session_radix_cache, "session KV (--enable-session-radix-cache)"),
        (params.is_eagle, "the bigram keys of speculative decoding"),
    ]
