"""An ASGI middleware before SGLang's handlers: limits, and 503 while the server drains.

Answers are OpenAI error objects. It wraps `receive` only, so streams and disconnects pass
through untouched.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from echo_sglang.adapter.drain import DRAIN, RETRY_AFTER_S, Drain
from echo_sglang.supervisor.door import read_off

MOST_HEADERS = 100
MOST_HEADER_BYTES = 32 * 1024
MEGABYTE = 1_000_000

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refusal(Exception):
    """A request that is not passed on: HTTP status, machine-readable code, message."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None):
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class HttpGuard:
    """max_body_mb: largest body, megabytes (10^6 bytes).

    unlimited: path prefixes whose handlers bound their own bodies.
    """

    def __init__(
        self,
        app: App,
        max_body_mb: float,
        unlimited: tuple[str, ...] = (),
        drain: Drain = DRAIN,
    ) -> None:
        self._app = app
        self._max_body_bytes = int(max_body_mb * MEGABYTE)
        self._unlimited = unlimited
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except Refusal as refusal:
            await read_off(receive)
            await _answer(refusal, send)
            return
        if self._limited(scope):
            await self._pass_bounded(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _pass_bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the body as it is read; FastAPI makes a 400 of whatever reading it raises."""
        taken, started, ended = 0, False, False
        refusal: Refusal | None = None

        async def bounded() -> MutableMapping[str, Any]:
            nonlocal taken, ended, refusal
            part = await receive()
            taken += len(part.get("body", b""))
            ended = not part.get("more_body")
            if taken > self._max_body_bytes:
                refusal = self._too_large(f"more than {self._max_body_bytes} bytes")
                raise refusal
            return part

        async def sending(part: MutableMapping[str, Any]) -> None:
            nonlocal started
            if refusal is None or started:
                started = True
                await send(part)

        with suppress(Refusal):
            await self._app(scope, bounded, sending)
        if refusal is not None and not started:
            if not ended:
                await read_off(receive)
            await _answer(refusal, send)

    def _check(self, scope: Scope) -> None:
        if self._drain.active and not _may_pass_while_draining(scope):
            raise Refusal(
                503,
                "server_draining",
                "The server is shutting down; send the request again.",
                RETRY_AFTER_S,
            )
        headers = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > MOST_HEADERS or size > MOST_HEADER_BYTES:
            raise Refusal(
                431,
                "headers_too_large",
                f"{len(headers)} headers of {size} bytes; at most {MOST_HEADERS} of "
                f"{MOST_HEADER_BYTES} bytes are taken.",
            )
        self._check_length(dict(headers).get(b"content-length"), scope)

    def _check_length(self, length: bytes | None, scope: Scope) -> None:
        if length is not None and self._limited(scope) and int(length) > self._max_body_bytes:
            raise self._too_large(f"{int(length)} bytes")

    def _limited(self, scope: Scope) -> bool:
        return not str(scope["path"]).startswith(self._unlimited or ("\0",))

    def _too_large(self, size: str) -> Refusal:
        return Refusal(
            413,
            "body_too_large",
            f"The body has {size}; at most {self._max_body_bytes} are taken (--echo-max-body-mb).",
        )


def _may_pass_while_draining(scope: Scope) -> bool:
    """Looking is allowed, but a load balancer must learn that this server goes away."""
    probes = ("/health", "/ready", "/ping")
    looks = scope["method"] in ("GET", "HEAD", "OPTIONS", "DELETE")
    return looks and not str(scope["path"]).startswith(probes)


async def _answer(refusal: Refusal, send: Send) -> None:
    error: Mapping[str, Any] = {
        "message": str(refusal),
        "type": "server_error" if refusal.status >= 500 else "invalid_request_error",
        "param": None,
        "code": refusal.code,
    }
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
