"""Counts the cached tokens that SGLang evicts, whatever radix cache it uses.

The only place that knows how: every cache evicts through the two public methods of
sglang/srt/mem_cache/base_prefix_cache.py::BasePrefixCache, and both return what they evicted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache, EvictResult


class EvictionMeter:
    """Tokens evicted from one cache since the last `take`."""

    def __init__(self, tree_cache: BasePrefixCache) -> None:
        self._tokens = 0
        self._depth = 0
        tree_cache.evict = self._counting(tree_cache.evict)
        tree_cache.evict_for_alloc = self._counting(tree_cache.evict_for_alloc)

    def take(self) -> int:
        """KV tokens of full attention evicted since the last call."""
        tokens, self._tokens = self._tokens, 0
        return tokens

    def _counting(self, evict: Callable[..., EvictResult]) -> Callable[..., EvictResult]:
        """`evict` as it was, counted once even where one method calls the other."""

        @wraps(evict)
        def counted(*args: object, **kwargs: object) -> EvictResult:
            self._depth += 1
            try:
                result = evict(*args, **kwargs)
            finally:
                self._depth -= 1
            if self._depth == 0:
                self._tokens += result.num_tokens_evicted
            return result

        return counted
