"""Answers clients on the engine's own port while no engine does: 503 with Retry-After.

The listening socket belongs to the supervisor for its whole life and the engine inherits it, so
the port is never closed and no request passes through the supervisor once an engine accepts.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 1000
MOST_BODY_BYTES = 1 << 20
"""Read of a refused request, so that its client sees the answer rather than a reset."""
GRACE_S = 2
LATE_S = 1.0
"""How long a closing door waits for the request of a client that has connected."""

_Event = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why there is no engine, in words for a client, and when to ask again."""

    message: str
    retry_after_s: int


def unavailable_body(why: Unavailable) -> bytes:
    """OpenAI's error object."""
    error = {
        "message": why.message,
        "type": "server_error",
        "param": None,
        "code": "engine_unavailable",
    }
    return json.dumps({"error": error}).encode()


class _LateAnswers(H11Protocol):
    """Where uvicorn would hang up on a client whose request is still on its way, waits for it."""

    def shutdown(self) -> None:
        if self.cycle:
            super().shutdown()
        else:
            self.loop.call_later(LATE_S, super().shutdown)


class Door:
    """Opens and closes; `why` is asked for each answer.

    tls: uvicorn's ssl_* options; empty for plain HTTP.
    """

    def __init__(
        self, listener: socket.socket, why: Callable[[], Unavailable], tls: dict[str, Any]
    ) -> None:
        self._listener = listener
        self._why = why
        self._tls = tls
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Begin to answer; harmless if it does already."""
        if self._thread is not None:
            return
        config = uvicorn.Config(
            self._answer,
            interface="asgi3",
            loop="asyncio",
            http=_LateAnswers,
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_S,
            **self._tls,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listener.dup()],), name="door", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Answer who has connected and accept no more; returns when that is so.

        A client that connects and sends nothing makes it take LATE_S.
        """
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
        self._server = self._thread = None

    async def _answer(
        self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send
    ) -> None:
        if scope["type"] != "http":
            return
        await read_off(receive)
        why = self._why()
        headers = [
            (b"content-type", b"application/json"),
            (b"retry-after", str(why.retry_after_s).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": unavailable_body(why)})


async def read_off(receive: _Receive) -> None:
    """Read what is left of a request's body, up to MOST_BODY_BYTES, and forget it.

    A connection that is closed with bytes unread is reset, and its client may never see the
    answer.
    """
    left = MOST_BODY_BYTES
    while left > 0:
        part = await receive()
        if part["type"] != "http.request" or not part.get("more_body"):
            return
        left -= len(part.get("body", b""))
