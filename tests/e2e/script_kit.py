"""What the scripts that run inside the scheduler share: sending, watching, waiting, counting."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.test.scripted_runtime.context import ScriptedContext

Steps = Generator[None, None, None]

STEPS_TO_SETTLE = 1500
OFFLINE = {"service_tier": "flex"}
ONLINE = {"service_tier": "default"}
VOCABULARY = 40_000


def prompt(seed: int, num_tokens: int) -> list[int]:
    """Token ids that share no prefix with another seed's."""
    return [100 + (7919 * seed + 31 * i * (i + seed)) % VOCABULARY for i in range(num_tokens)]


_serial = itertools.count()


class Driver:
    """Sends requests, sees every request object that ever ran, and waits in iterations.

    Names are per driver: two seconds after a stream ended, SGLang aborts its request id once
    more, and another script may run by then.
    """

    def __init__(self, ctx: ScriptedContext, *, mixed: bool | None = None) -> None:
        self.ctx = ctx
        self.scheduler: Any = ctx.scheduler
        self._prefix = f"s{next(_serial)}."
        self.reqs: dict[str, Req] = {}
        self.finished_order: list[str] = []
        if mixed is not None:
            self.scheduler.is_mixed_chunk = mixed

    def send(self, name: str, tokens: list[int], max_new_tokens: int, **fields: Any) -> None:
        """Post to /generate; returns when the scheduler's socket holds the request."""
        body = {
            "rid": self.rid(name),
            "input_ids": tokens,
            "stream": True,
            **fields,
            "sampling_params": {
                "max_new_tokens": max_new_tokens,
                "ignore_eos": True,
                "temperature": 0,
                **fields.get("sampling_params", {}),
            },
        }
        from sglang.test.scripted_runtime.context import http_post

        http_post._http_post_and_await_recv_msg(
            self.ctx,
            path="/generate",
            json=body,
            predicate=lambda message: getattr(message, "rid", None) == self.rid(name),
            description=f"request {name}",
        )

    def abort(self, name: str) -> None:
        """Abort as a client does; returns when the scheduler's socket holds it."""
        from sglang.test.scripted_runtime.context import lifecycle

        lifecycle.abort(self.ctx, rid=self.rid(name))

    def rid(self, name: str) -> str:
        """The request id that SGLang sees."""
        return self._prefix + name

    def step(self) -> Steps:
        """One iteration."""
        yield
        self._observe()

    def until(self, holds: Callable[[], bool], what: str, limit: int = STEPS_TO_SETTLE) -> Steps:
        """Iterate until `holds`; AssertionError with the state after `limit` iterations."""
        self._observe()
        for _ in range(limit):
            if holds():
                return
            yield from self.step()
        raise AssertionError(f"not after {limit} iterations: {what}; {self.state()}")

    def until_finished(self, *rids: str) -> Steps:
        yield from self.until(lambda: all(self.is_finished(r) for r in rids), f"{rids} finished")

    def until_idle(self) -> Steps:
        yield from self.until(self.scheduler.is_fully_idle, "idle")
        yield from self.step()

    def flush(self) -> Steps:
        """Empty the KV cache of an idle server and check that it became empty."""
        yield from self.until_idle()
        self.ctx.flush_cache()
        yield from self.step()
        assert self.free_tokens() == self.scheduler.max_total_num_tokens, self.state()

    def is_finished(self, rid: str) -> bool:
        return rid in self.reqs and self.reqs[rid].finished()

    def outputs(self, rid: str) -> list[int]:
        return list(self.reqs[rid].output_ids)

    def num_outputs(self, rid: str) -> int:
        return len(self.reqs[rid].output_ids) if rid in self.reqs else 0

    def is_pooled(self, name: str) -> bool:
        return self.rid(name) in self.scheduler.offline_queue

    def is_chunking(self, name: str, at_least_tokens: int = 0) -> bool:
        """Half prefilled, with at least so many tokens in the cache."""
        req = self.scheduler.chunked_req
        return req is not None and req.rid == self.rid(name) and req.prefix_len >= at_least_tokens

    def num_parks(self, name: str) -> int:
        """Batches that ran without the half-done prefill of `name`."""
        return int(self.ctx.chunked_parks(self.rid(name)))

    def counter(self, name: str) -> int:
        return int(self.scheduler.echo_counters.get(name, 0))

    def free_tokens(self) -> int:
        return int(self.scheduler.token_to_kv_pool_allocator.available_size())

    def assert_nothing_locked(self) -> None:
        """KV tokens free + cached = all, and nobody holds a row."""
        cached = self.scheduler.tree_cache.evictable_size()
        locked = self.scheduler.tree_cache.protected_size()
        total = self.scheduler.max_total_num_tokens
        assert locked == 0, self.state()
        assert self.free_tokens() + cached == total, self.state()
        rows = self.scheduler.req_to_token_pool
        assert rows.available_size() == rows.size, self.state()

    def state(self) -> str:
        """What a person wants to read when a condition does not come true."""
        scheduler = self.scheduler
        chunk = scheduler.chunked_req
        parts = {
            "running": [r.rid for r in scheduler.running_batch.reqs],
            "waiting": [r.rid for r in scheduler.waiting_queue],
            "chunk": None if chunk is None else (chunk.rid, chunk.prefix_len),
            "finished": self.finished_order,
            "outputs": {rid: len(req.output_ids) for rid, req in self.reqs.items()},
            "free": self.free_tokens(),
            "cached": scheduler.tree_cache.evictable_size(),
            "locked": scheduler.tree_cache.protected_size(),
        }
        if hasattr(scheduler, "offline_queue"):
            parts["pooled"] = list(scheduler.offline_queue.pool.rids())
            parts["counters"] = scheduler.echo_counters
            parts["decisions"] = scheduler.decision_log.last(6)
        return "; ".join(f"{name} {value}" for name, value in parts.items())

    def _observe(self) -> None:
        scheduler = self.scheduler
        seen = [*scheduler.running_batch.reqs, *scheduler.waiting_queue]
        if scheduler.last_batch is not None:
            seen.extend(scheduler.last_batch.reqs)
        if scheduler.chunked_req is not None:
            seen.append(scheduler.chunked_req)
        for req in seen:
            if req.rid.startswith(self._prefix):
                self.reqs.setdefault(req.rid.removeprefix(self._prefix), req)
        for rid, req in self.reqs.items():
            if req.finished() and rid not in self.finished_order:
                self.finished_order.append(rid)
