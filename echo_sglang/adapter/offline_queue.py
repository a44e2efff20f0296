"""The offline pool's SGLang side: light tokenized requests, built only when chosen."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
from sglang.srt.managers.schedule_batch import Req

from echo_sglang.adapter.requests import EchoReq, namespace_of
from echo_sglang.domain.tag import RequestTag
from echo_sglang.kv.namespaces import Namespaces
from echo_sglang.policy.jobs import NO_JOB
from echo_sglang.policy.offline_pool import OfflineEntry, OfflinePool, PoolSettings

Builder = Callable[[TokenizedGenerateReqInput], Req | None]
"""Turns a tokenized request into an SGLang request; None if SGLang refused it."""

Listener = Callable[["array[int]", "str | None", "str | None"], None]
"""Told (tokens, extra_key, cache_salt) of every prompt after it came or went, see `admitted`."""

NO_TOKENS: array[int] = array("q")


class CachedPrefix(NamedTuple):
    """What the KV cache holds of a prompt: so many tokens, the last of them in the cache's node
    `node_id`, which ends after `node_end` tokens."""

    tokens: int
    node_id: int
    node_end: int


@dataclass(slots=True)
class _Waiting:
    """cached: set while all that could be cached of it was, when it was last looked at."""

    tokenized: TokenizedGenerateReqInput | None
    req: Req | None
    cached: CachedPrefix | None = None

    @property
    def source(self) -> Any:
        """The one of them that is there."""
        return self.req if self.req is not None else self.tokenized


class OfflineQueue:
    """Waiting offline requests: the pure pool decides the order, this holds the objects.

    A waiting request gives its tokens to the pool, which keeps those that several share once;
    it gets them back when it is built. page_size: of the KV cache, in tokens. listener: see
    `Listener`; may be set later.
    """

    def __init__(self, settings: PoolSettings, build: Builder, *, page_size: int = 1) -> None:
        self.pool = OfflinePool(settings)
        self.namespaces = Namespaces()
        self.listener: Listener | None = None
        self._build = build
        self._page_size = page_size
        self._waiting: dict[str, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, rid: str) -> bool:
        return rid in self._waiting

    def add_tokenized(
        self,
        recv_req: TokenizedGenerateReqInput,
        tag: RequestTag,
        *,
        now_s: float,
        deadline_s: float | None,
        cached_tokens: int,
        max_new_tokens: int,
    ) -> None:
        """Take in a request that never ran, unbuilt."""
        tokens = self._mark(recv_req) + recv_req.input_ids
        entry = OfflineEntry(
            rid=recv_req.rid,
            num_tokens=len(tokens),
            arrival_s=now_s,
            max_new_tokens=max_new_tokens,
            deadline_s=deadline_s,
            job=tag.job or NO_JOB,
            weight=tag.weight,
        )
        # The scheduler reads no text, and the pool has the tokens.
        recv_req.input_ids, recv_req.input_text = NO_TOKENS, None
        self._add(entry, tokens, _Waiting(recv_req, None), cached_tokens)

    def add_req(
        self,
        req: Req,
        *,
        now_s: float,
        deadline_s: float | None = None,
        parked_at_step: int | None = None,
        rest_steps: int = 0,
        left_available_tokens: int = 0,
        left_budget_s: float = math.inf,
    ) -> None:
        """Take in a built request: one that ran and gave way, or one that had to be built."""
        before = req.admitted_as if isinstance(req, EchoReq) else None
        tag = req.tag if isinstance(req, EchoReq) else RequestTag()
        if before is not None:
            self._settle(req, before, ended=False)
        tokens = self.marked_tokens(req)
        entry = OfflineEntry(
            rid=req.rid,
            num_tokens=len(tokens),
            arrival_s=now_s if before is None else before.arrival_s,
            max_new_tokens=_may_still_produce(req),
            deadline_s=deadline_s,
            parked_at_step=parked_at_step,
            job=tag.job or NO_JOB,
            weight=tag.weight,
            rest_steps=rest_steps,
            left_available_tokens=left_available_tokens,
            left_budget_s=left_budget_s,
        )
        self._add(entry, tokens, _Waiting(None, req), 0)

    def materialize(self, rid: str) -> Req | None:
        """The SGLang request of `rid`, built now if it never was.

        None if SGLang refused it (it was answered) or if it is gone.
        """
        waiting = self._waiting.get(rid)
        if waiting is None:
            return None
        if waiting.req is None:
            assert waiting.tokenized is not None
            waiting.tokenized.input_ids = self.tokens(rid)
            waiting.req = self._build(waiting.tokenized)
            if waiting.req is None:
                self.discard(rid)
                return None
            waiting.tokenized = None
        return waiting.req

    def admitted(self, rid: str) -> None:
        """`rid`, which was materialized, runs now; it leaves the queue.

        What is cached of its prompt it holds: nobody can evict that, and nobody need be told. But
        a last page is computed even if it is cached, and that one is not held.
        """
        req = self._waiting[rid].req
        assert req is not None, rid
        uncached = len(req.origin_input_ids) + len(req.output_ids) - req.prefix_len
        tokens = self.marked_tokens(req) if uncached <= self._page_size else None
        entry = self.pool.admit(rid, computed_tokens=max(uncached, 1))
        self._forget(rid, tokens)
        if isinstance(req, EchoReq):
            req.admitted_as = entry

    def urgency_of_running(self, req: Req, now_s: float) -> float:
        """What a token of an admitted request is worth beside one without a deadline."""
        entry = req.admitted_as if isinstance(req, EchoReq) else None
        if entry is None or entry.deadline_s is None:
            return 1.0
        return self.pool.urgency_of_running(entry, _may_still_produce(req), now_s)

    def ended(self, req: EchoReq) -> None:
        """A request that was admitted is done or aborted."""
        if req.admitted_as is not None:
            self._settle(req, req.admitted_as, ended=True)

    def _settle(self, req: EchoReq, entry: OfflineEntry, *, ended: bool) -> None:
        """Charge its job for what it produced since it was admitted as `entry`."""
        req.admitted_as = None
        produced = entry.max_new_tokens - _may_still_produce(req)
        self.pool.produced(entry, max(produced, 0), ended=ended)

    def discard(self, rid: str) -> None:
        """Forget `rid`."""
        tokens = self.pool.tokens(rid)
        self.pool.remove(rid)
        self._forget(rid, tokens)

    def tokens(self, rid: str) -> array[int]:
        """The tokens of a waiting request, without the mark of its namespace."""
        return _without(self.pool.tokens(rid), self._mark(self._waiting[rid].source))

    def cached_end(self, rid: str) -> CachedPrefix | None:
        """What `note_cached_end` was told of a waiting request."""
        return self._waiting[rid].cached

    def note_cached_end(self, rid: str, cached: CachedPrefix) -> None:
        """All of a waiting request is cached as long as the node where it ends."""
        self._waiting[rid].cached = cached

    def take_matching(self, rid_prefix: str, *, everything: bool) -> list[_Waiting]:
        """Remove and return what an abort names: ids that start with `rid_prefix`, or all."""
        if everything:
            rids = list(self._waiting)
        elif rid_prefix in self._waiting:
            rids = [rid_prefix]
        else:
            rids = [rid for rid in self._waiting if rid.startswith(rid_prefix)]
        taken = [self._waiting[rid] for rid in rids]
        for rid in rids:
            self.discard(rid)
        return taken

    def built_reqs(self) -> Iterator[Req]:
        """The requests among the waiting that were built, such as released ones."""
        return (w.req for w in self._waiting.values() if w.req is not None)

    def marked_tokens(self, req: Req) -> array[int]:
        """The tokens of any request as the pool would keep them."""
        return self._mark(req) + req.origin_input_ids + req.output_ids

    def mark_tokens(self, req: Req) -> int:
        """By how many tokens that is longer than the request's own."""
        return len(self._mark(req))

    def first_tokens(self, rid: str) -> array[int] | None:
        """Tokens that the prompt of a waiting request begins with, at least one, not to be
        changed; None outside the namespace that has no mark. Much less than all of them to read."""
        if self._mark(self._waiting[rid].source):
            return None
        return self.pool.index.first_edge(rid)

    def namespace_of(self, rid: str) -> tuple[str | None, str | None]:
        """(extra_key, cache_salt) of a waiting request: only equal ones share KV."""
        return namespace_of(self._waiting[rid].source)

    def _mark(self, source: Any) -> array[int]:
        return self.namespaces.mark(*namespace_of(source))

    def _add(
        self, entry: OfflineEntry, tokens: array[int], waiting: _Waiting, cached_tokens: int
    ) -> None:
        self.pool.add(entry, tokens, cached_tokens=cached_tokens)
        self._waiting[entry.rid] = waiting
        self._tell(tokens, waiting.source)

    def _forget(self, rid: str, tokens: array[int] | None) -> None:
        """tokens: None for a prompt that the listener need not hear of."""
        waiting = self._waiting.pop(rid)
        if tokens is not None:
            self._tell(tokens, waiting.source)

    def _tell(self, tokens: array[int], source: Any) -> None:
        if self.listener is not None:
            self.listener(_without(tokens, self._mark(source)), *namespace_of(source))


def _without(tokens: array[int], mark: array[int]) -> array[int]:
    """What follows the mark; no copy where there is none."""
    return tokens[len(mark) :] if mark else tokens


def _may_still_produce(req: Req) -> int:
    return max(req.sampling_params.max_new_tokens - len(req.output_ids), 0)
