"""The offline pool's SGLang side: light tokenized requests, built only when chosen."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
from sglang.srt.managers.schedule_batch import Req

from echo_sglang.adapter.requests import EchoReq
from echo_sglang.domain.tag import RequestTag
from echo_sglang.policy.offline_pool import OfflineEntry, OfflinePool, PoolSettings

Builder = Callable[[TokenizedGenerateReqInput], Req | None]
"""Turns a tokenized request into an SGLang request; None if SGLang refused it."""


@dataclass(slots=True)
class _Waiting:
    tokenized: TokenizedGenerateReqInput | None
    req: Req | None


class OfflineQueue:
    """Waiting offline requests: the pure pool decides the order, this holds the objects."""

    def __init__(self, settings: PoolSettings, build: Builder) -> None:
        self.pool = OfflinePool(settings)
        self._build = build
        self._waiting: dict[str, _Waiting] = {}
        self._namespaces: dict[tuple[str | None, str | None], int] = {(None, None): 0}

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
        entry = OfflineEntry(
            rid=recv_req.rid,
            tokens=self._indexed(recv_req.input_ids, recv_req.extra_key, recv_req.cache_salt),
            arrival_s=now_s,
            max_new_tokens=max_new_tokens,
            deadline_s=deadline_s,
        )
        self.pool.add(entry, cached_tokens=cached_tokens)
        self._waiting[recv_req.rid] = _Waiting(recv_req, None)

    def add_req(
        self,
        req: Req,
        *,
        now_s: float,
        deadline_s: float | None = None,
        parked_at_step: int | None = None,
    ) -> None:
        """Take in a built request: one that ran and gave way, or one that had to be built."""
        waited_since_s = req.pooled_at_s if isinstance(req, EchoReq) else None
        entry = OfflineEntry(
            rid=req.rid,
            tokens=self._indexed(
                req.origin_input_ids + req.output_ids, req.extra_key, req.cache_salt
            ),
            arrival_s=now_s if waited_since_s is None else waited_since_s,
            max_new_tokens=req.sampling_params.max_new_tokens - len(req.output_ids),
            deadline_s=deadline_s,
            parked_at_step=parked_at_step,
        )
        self.pool.add(entry)
        self._waiting[req.rid] = _Waiting(None, req)

    def materialize(self, rid: str) -> Req | None:
        """The SGLang request of `rid`, built now if it never was.

        None if SGLang refused it (it was answered) or if it is gone.
        """
        waiting = self._waiting.get(rid)
        if waiting is None:
            return None
        if waiting.req is None:
            assert waiting.tokenized is not None
            waiting.req = self._build(waiting.tokenized)
            if waiting.req is None:
                self.discard(rid)
                return None
            waiting.tokenized = None
        return waiting.req

    def admitted(self, rid: str) -> None:
        """`rid`, which was materialized, runs now; it leaves the queue."""
        entry = self.pool.admit(rid)
        req = self._waiting.pop(rid).req
        if isinstance(req, EchoReq):
            req.pooled_at_s = entry.arrival_s

    def discard(self, rid: str) -> None:
        """Forget `rid`."""
        self.pool.remove(rid)
        del self._waiting[rid]

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

    def namespace_of(self, rid: str) -> tuple[str | None, str | None]:
        """(extra_key, cache_salt) of a waiting request: only equal ones share KV."""
        waiting = self._waiting[rid]
        source = waiting.req if waiting.req is not None else waiting.tokenized
        assert source is not None
        return source.extra_key, source.cache_salt

    def _indexed(
        self, tokens: array[int], extra_key: str | None, cache_salt: str | None
    ) -> array[int]:
        """Tokens as the index sees them: other namespaces start with a token of their own."""
        namespace = (extra_key, cache_salt)
        number = self._namespaces.setdefault(namespace, len(self._namespaces))
        return tokens if number == 0 else array("q", [-number]) + tokens
