"""Takes the KV of running offline requests back without losing it.

Who owns which tokens of a released decode row (n = prompt + output so far):

    [0, cache_protected_len)        the tree, shared; the row only held a lock
    [cache_protected_len, n - 1)    the row; `checkpoint=True` gives them to the tree
    n - 1                           the last sampled token, whose KV was never computed

so resuming costs one token (plus the page's tail where a page has several tokens), as long
as the tree keeps the path. Steps as SGLang's own retraction (schedule_batch.py::release_req),
which would drop the KV.
"""

from __future__ import annotations

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.mem_cache.base_prefix_cache import BasePrefixCache
from sglang.srt.mem_cache.common import release_kv_cache


def release_rows(
    batch: ScheduleBatch, tree_cache: BasePrefixCache, rids: frozenset[str]
) -> list[Req]:
    """Remove decode rows from `batch`, their KV kept in the tree; returns the requests.

    A result still in flight is discarded by SGLang through `is_retracted`, so a released
    request must not run again before that result was processed.
    """
    released: list[Req] = []
    keep: list[int] = []
    for index, req in enumerate(batch.reqs):
        if req.rid not in rids or req.finished():
            keep.append(index)
            continue
        release_kv_cache(req, tree_cache, checkpoint=True)
        req.reset_for_retract()
        released.append(req)
    if released:
        batch.filter_batch(keep_indices=keep)
        batch.batch_is_full = False
    return released


def release_chunk(req: Req, tree_cache: BasePrefixCache) -> None:
    """Give back a half-done prefill; the chunks that SGLang stashed stay in the tree."""
    release_kv_cache(req, tree_cache, checkpoint=False)
    req.reset_for_retract()
