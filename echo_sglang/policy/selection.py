"""From pool order to candidates of one iteration: cached first, nothing computed twice."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from echo_sglang.domain.snapshot import OfflineCandidate
from echo_sglang.kv.prefix_index import Node
from echo_sglang.policy.offline_pool import OfflineEntry, OfflinePool


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionSettings:
    """limit: candidates per iteration. slack_tokens: fewer may be computed twice.

    least_wanted_tokens, chunks_wanted: candidates are looked for until they hold so many tokens,
    or so many chunks like those of late.
    """

    limit: int = 32
    slack_tokens: int = 32
    least_wanted_tokens: int = 512
    chunks_wanted: int = 2


def wanted_next(
    wanted_tokens: int, chunk_tokens: int, cap_tokens: int, settings: SelectionSettings
) -> int:
    """Tokens that the candidates of the next iteration should hold, after one that wanted
    `wanted_tokens` and computed a chunk of `chunk_tokens`: enough for a chunk that grows, and
    only slowly fewer."""
    enough = max(
        settings.chunks_wanted * chunk_tokens,
        3 * wanted_tokens // 4,
        settings.least_wanted_tokens,
    )
    return min(enough, cap_tokens)


def select_candidates(
    pool: OfflinePool,
    probe: Callable[[OfflineEntry], int],
    *,
    now_s: float,
    step: int,
    wanted_tokens: int,
    settings: SelectionSettings,
    computing: Iterable[int] = (),
) -> tuple[OfflineCandidate, ...]:
    """Candidates in the order to admit them, enough to fill `wanted_tokens` of prefill; those
    that rest come on top.

    probe: tokens of an entry that the KV cache holds now; it must not disturb the cache.
    computing: identities of prefixes that a half-done prompt is computing, see `BeingComputed`.
    A request whose next uncached tokens it or an earlier candidate is about to compute waits
    for them: one iteration later it finds them in the cache.
    """
    chosen: list[OfflineCandidate] = []
    computing = set(computing)
    cached_of = _CachedTokens(probe)
    tokens = 0
    for entry in pool.named(settings.limit, now_s, computing):
        end = pool.index.end(entry.rid)
        shared = cached_of.shared_by(end)
        never_ran = entry.parked_at_step is None
        if never_ran and not computing.isdisjoint(map(id, shared)):
            # Of a document being computed all but the first of dozens of questions wait.
            continue
        cached = min(cached_of(entry, shared), entry.num_tokens - 1)
        known = cached + settings.slack_tokens
        uncached = [id(node) for node in shared if node.depth > known]
        if not computing.isdisjoint(uncached):
            continue
        if end.depth > known:
            if id(end) in computing:
                continue
            uncached.append(id(end))
        computing.update(uncached)
        parked_at = entry.parked_at_step
        steps_parked = None if parked_at is None else step - parked_at
        extend = entry.num_tokens - cached
        chosen.append(
            OfflineCandidate(
                rid=entry.rid,
                extend_tokens=extend,
                prefix_tokens=cached,
                max_new_tokens=entry.max_new_tokens,
                steps_parked=steps_parked,
                urgency=1.0 if entry.deadline_s is None else pool.urgency(entry.rid),
                rest_steps=entry.rest_steps,
                left_available_tokens=entry.left_available_tokens,
                left_budget_s=entry.left_budget_s,
            )
        )
        if steps_parked is None or steps_parked >= entry.rest_steps:
            tokens += extend
        if tokens >= wanted_tokens:
            break
    return tuple(chosen)


class BeingComputed:
    """Prefixes of pooled requests that a half-done prompt is going to put into the cache.

    Every iteration asks, and a walk reads the whole prompt: it is walked along once, and again
    when requests were added to the pool. Those that leave it only make prefixes disappear.
    """

    def __init__(self, pool: OfflinePool, settings: SelectionSettings) -> None:
        self._pool = pool
        self._slack_tokens = settings.slack_tokens
        self._walked: tuple[str, int] | None = None
        self._along: list[tuple[Node[str], int]] = []

    def by(self, rid: str, prompt: Callable[[], array[int]], computed_tokens: int) -> set[int]:
        """Identities of nodes of the pool's index. computed_tokens: of the prompt of `rid`, which
        does not wait itself, are computed."""
        walked = (rid, self._pool.added)
        if walked != self._walked:
            self._walked, self._along = walked, list(self._pool.index.along(prompt()))
        known = computed_tokens + self._slack_tokens
        return {id(node) for node, shared in self._along if shared > known}


class _CachedTokens:
    """Cached tokens of pooled requests within one pass, probed once for those that share.

    What is cached of a prefix is the same for all that share it. Beyond it a request that
    never ran is taken to have nothing in the cache; one that did is probed itself.
    """

    def __init__(self, probe: Callable[[OfflineEntry], int]) -> None:
        self._probe = probe
        self._known: dict[int, int] = {}
        self._shared: dict[int, list[Node[str]]] = {}

    def __call__(self, entry: OfflineEntry, shared: list[Node[str]]) -> int:
        """shared: the prefixes of its prompt, deepest first."""
        if entry.parked_at_step is None:
            for node in shared:
                known = self._known.get(id(node))
                if known is not None:
                    return known
        cached = self._probe(entry)
        for node in shared:
            self._known[id(node)] = min(cached, node.depth)
        return cached

    def shared_by(self, end: Node[str]) -> list[Node[str]]:
        """The nodes between where a prompt ends and the root, deepest first. Siblings' are the
        same: a list not to be changed."""
        found = self._shared.get(id(end.parent))
        if found is None:
            found = self._shared[id(end.parent)] = []
            node = end.parent
            while node is not None and node.parent is not None:
                found.append(node)
                node = node.parent
        return found
