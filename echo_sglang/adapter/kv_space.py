"""What of the KV pool is not held by anybody who runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler


class KvSpace(NamedTuple):
    """In tokens. free: hold nothing. cached: hold what nobody runs on, and can be evicted."""

    free: int
    cached: int

    @property
    def available(self) -> int:
        """What work can get."""
        return self.free + self.cached


def kv_space(scheduler: EchoScheduler) -> KvSpace:
    """The space there is now."""
    return KvSpace(
        free=int(scheduler.token_to_kv_pool_allocator.available_size()),
        cached=int(scheduler.tree_cache.evictable_size()),
    )
