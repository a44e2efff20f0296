"""The load generator: plays a workload against one server and records what a user would see.

Online messages are streamed chat completions, sent when they are due whatever the server does
(open loop). Offline questions are chat completions too, all submitted at the start and not
streamed. Both are greedy and of fixed length, so every server does the same work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from eval.harness.records import UNFINISHED, OfflineRecord, OnlineRecord, RunRecord
from eval.harness.workload import OfflineRequest, OnlineRequest, Workload

_CHAT_PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The fields by which a server tells the two classes apart; empty for one that cannot."""

    online: dict[str, Any] = field(default_factory=dict)
    offline: dict[str, Any] = field(default_factory=dict)


PLAIN = Dialect()
PRIORITY = Dialect(online={"priority": 100}, offline={"priority": 0})
ECHO = Dialect(offline={"service_tier": "flex"})


@dataclass(slots=True, kw_only=True)
class Progress:
    """Counts while a run is under way, for a progress line."""

    online_sent: int = 0
    online_done: int = 0
    offline_done: int = 0
    offline_tokens: int = 0


@dataclass(slots=True)
class _Stream:
    """What has arrived of one streamed answer."""

    first_s: float | None = None
    last_s: float | None = None
    previous_s: float = 0.0
    max_gap_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    service_tier: str | None = None
    finish_reason: str | None = None
    error: str | None = None

    def take(self, event: dict[str, Any], now_s: float) -> None:
        """Account for one server-sent event received at `now_s`."""
        if "error" in event:
            self.error = str(event["error"])
        usage = event.get("usage") or {}
        self.prompt_tokens = usage.get("prompt_tokens") or self.prompt_tokens
        self.output_tokens = usage.get("completion_tokens") or self.output_tokens
        self.service_tier = event.get("service_tier") or self.service_tier
        for choice in event.get("choices") or ():
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if (choice.get("delta") or {}).get("content") or choice.get("finish_reason"):
                self._token(now_s)

    def _token(self, now_s: float) -> None:
        if self.first_s is None:
            self.first_s = now_s
        else:
            self.max_gap_s = max(self.max_gap_s, now_s - self.previous_s)
        self.previous_s = now_s
        self.last_s = now_s


class LoadClient:
    """Plays workloads against `base_url`. One instance may play many, one after the other.

    clock: seconds that only grow; every recorded time is a difference of it.
    """

    def __init__(
        self,
        base_url: str,
        *,
        dialect: Dialect,
        clock: Callable[[], float] = time.perf_counter,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._base_url = base_url
        self._dialect = dialect
        self._clock = clock
        self._transport = transport
        self.progress = Progress()

    async def play(self, workload: Workload, *, grace_s: float = 30.0) -> RunRecord:
        """Play `workload` and return what was seen.

        Offline work stays under way until every online request is answered or `grace_s` has
        passed after the window; then everything left is disconnected, which aborts it.
        """
        self.progress = Progress()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        async with httpx.AsyncClient(
            base_url=self._base_url, timeout=None, limits=limits, transport=self._transport
        ) as http:
            run = _Run(http, self._dialect, self._clock, self.progress)
            return await run.play(workload, grace_s)


class _Run:
    """One play: the clock's zero and the answers so far."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        dialect: Dialect,
        clock: Callable[[], float],
        progress: Progress,
    ) -> None:
        self._http = http
        self._dialect = dialect
        self._clock = clock
        self._progress = progress
        self._start = clock()
        self._online: list[OnlineRecord] = []
        self._offline: list[OfflineRecord] = []

    async def play(self, workload: Workload, grace_s: float) -> RunRecord:
        window_s = workload.config.window_s
        offline = [asyncio.create_task(self._ask_offline(r)) for r in workload.offline]
        online = [asyncio.create_task(self._ask_online(r)) for r in workload.online]
        try:
            await asyncio.sleep(window_s - self._now_s())
            if online:
                await asyncio.wait(online, timeout=grace_s)
        finally:
            await _cancel(online)
            await _cancel(offline)
        return RunRecord(
            workload_sha256=workload.sha256,
            window_s=window_s,
            num_offline_submitted=len(workload.offline),
            online=tuple(sorted(self._online, key=lambda r: r.index)),
            offline=tuple(sorted(self._offline, key=lambda r: r.done_s)),
        )

    def _now_s(self) -> float:
        return self._clock() - self._start

    async def _ask_online(self, request: OnlineRequest) -> None:
        await asyncio.sleep(max(0.0, request.arrival_s - self._now_s()))
        sent_s = self._now_s()
        self._progress.online_sent += 1
        body = _body(request.message, request.tokens_out) | self._dialect.online
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        stream = _Stream()
        try:
            async for event in self._events(body):
                stream.take(event, self._now_s())
            if stream.finish_reason in (None, "abort"):
                stream.error = stream.error or f"finish_reason {stream.finish_reason}"
        except asyncio.CancelledError:
            stream.error = UNFINISHED
            raise
        except (httpx.HTTPError, ValueError) as error:
            stream.error = f"{type(error).__name__}: {error}"
        finally:
            self._progress.online_done += stream.error is None
            self._online.append(self._online_record(request, sent_s, stream))

    def _online_record(
        self, request: OnlineRequest, sent_s: float, stream: _Stream
    ) -> OnlineRecord:
        return OnlineRecord(
            index=request.index,
            due_s=request.arrival_s,
            sent_s=sent_s,
            first_s=stream.first_s,
            last_s=stream.last_s if stream.error is None else None,
            stopped_s=self._now_s(),
            max_gap_s=stream.max_gap_s,
            prompt_tokens=stream.prompt_tokens,
            output_tokens=stream.output_tokens,
            service_tier=stream.service_tier,
            error=stream.error,
        )

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async with self._http.stream("POST", _CHAT_PATH, json=body) as response:
            if response.status_code != httpx.codes.OK:
                text = (await response.aread()).decode(errors="replace")
                raise ValueError(f"HTTP {response.status_code}: {text[:500]}")
            async for line in response.aiter_lines():
                if line.startswith("data:") and line[5:].strip() != "[DONE]":
                    yield json.loads(line[5:])

    async def _ask_offline(self, request: OfflineRequest) -> None:
        body = _body(request.message, request.tokens_out) | self._dialect.offline
        try:
            response = await self._http.post(_CHAT_PATH, json=body)
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"HTTP {response.status_code}: {response.text[:500]}")
            record = self._offline_record(request, response.json(), error=None)
        except (httpx.HTTPError, ValueError) as error:
            record = self._offline_record(request, {}, error=f"{type(error).__name__}: {error}")
        self._offline.append(record)

    def _offline_record(
        self, request: OfflineRequest, answer: dict[str, Any], *, error: str | None
    ) -> OfflineRecord:
        usage = answer.get("usage") or {}
        choice = (answer.get("choices") or [{}])[0]
        if error is None and choice.get("finish_reason") in (None, "abort"):
            error = f"finish_reason {choice.get('finish_reason')}"
        prompt_tokens = usage.get("prompt_tokens") or 0
        output_tokens = usage.get("completion_tokens") or 0
        if error is None:
            self._progress.offline_done += 1
            self._progress.offline_tokens += prompt_tokens + output_tokens
        return OfflineRecord(
            index=request.index,
            document=request.document,
            done_s=self._now_s(),
            prompt_tokens=prompt_tokens,
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            output_tokens=output_tokens,
            service_tier=answer.get("service_tier"),
            text=(choice.get("message") or {}).get("content") or "",
            error=error,
        )


def _body(message: str, tokens_out: int) -> dict[str, Any]:
    return {
        "model": "default",
        "messages": [{"role": "user", "content": message}],
        "max_tokens": tokens_out,
        "temperature": 0,
        "ignore_eos": True,
    }


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)
