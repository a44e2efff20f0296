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
    computing: identities of prefixes that a half-done prompt is computing, see `being_computed`.
    A request whose next uncached tokens it or an earlier candidate is about to compute waits
    for them: one iteration later it finds them in the cache.
    """
    chosen: list[OfflineCandidate] = []
    computing = set(computing)
    cached_of = _CachedTokens(probe)
    tokens = 0
    for entry in pool.named(settings.limit, now_s):
        end = pool.index.end(entry.rid)
        if cached_of.waits_like_others(entry, end):
            continue
        shared = cached_of.shared_by(end)
        cached = min(cached_of(entry, shared), entry.num_tokens - 1)
        known = cached + settings.slack_tokens
        uncached = [id(node) for node in shared if node.depth > known]
        if not computing.isdisjoint(uncached):
            cached_of.note_waiting(end)
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


def being_computed(
    pool: OfflinePool, prompt: array[int], computed_tokens: int, settings: SelectionSettings
) -> set[int]:
    """Prefixes of pooled requests that a half-done prompt, `computed_tokens` of it computed,
    is going to put into the cache; identities of nodes of the pool's index."""
    known = computed_tokens + settings.slack_tokens
    return {id(node) for node, shared in pool.index.along(prompt) if shared > known}


class _CachedTokens:
    """Cached tokens of pooled requests within one pass, probed once for those that share.

    What is cached of a prefix is the same for all that share it. Beyond it a request that
    never ran is taken to have nothing in the cache; one that did is probed itself.
    """

    def __init__(self, probe: Callable[[OfflineEntry], int]) -> None:
        self._probe = probe
        self._known: dict[int, int] = {}
        self._shared: dict[int, list[Node[str]]] = {}
        self._waiting: set[int] = set()

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
        self._waiting.clear()
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

    def note_waiting(self, end: Node[str]) -> None:
        """A request that ends there waits for a prefix that somebody is about to compute."""
        self._waiting.add(id(end.parent))

    def waits_like_others(self, entry: OfflineEntry, end: Node[str]) -> bool:
        """True if a sibling that never ran waits, and nothing was found out since: so does it.

        Of a document being computed all but the first of dozens of questions do.
        """
        return entry.parked_at_step is None and id(end.parent) in self._waiting
