"""Runs batch lines through SGLang's own HTTP application, in this process, as offline work.

A line takes the way of a client's request: the same checks, handlers and error answers, but
no socket. Only the tag differs, which the runner sets: service_tier flex and the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from uuid import uuid4

import orjson

from echo_sglang.service.errors import EngineGoneError
from echo_sglang.service.forecast import Speed, speed_of
from echo_sglang.service.model import EngineAnswer, LineTag

Message = MutableMapping[str, Any]
AsgiApp = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

RESPONSES = "/v1/responses"
ABORT_GRACE_S = 5.0
"""How long a cancelled line may take to leave the engine before it is left to itself."""


class AppEngine:
    """The engine behind an SGLang application.

    manager: its tokenizer manager. api_key: the key it wants, None without.
    max_in_flight: lines that it takes at once.
    """

    def __init__(
        self, app: AsgiApp, manager: Any, *, api_key: str | None, max_in_flight: int
    ) -> None:
        self._app = app
        self._manager = manager
        self._max_in_flight = max_in_flight
        self._headers = [(b"content-type", b"application/json"), (b"host", b"echo-batch")]
        if api_key:
            self._headers.append((b"authorization", f"Bearer {api_key}".encode()))

    @property
    def ready(self) -> bool:
        """See `Engine`: false while SGLang starts, is paused or stops."""
        return bool(self._manager.is_ready())

    @property
    def capacity(self) -> int:
        """See `Engine`. The scheduler's pool holds far more; what it needs to see ahead are a
        few times the rows that run at once."""
        return self._max_in_flight if self.ready else 0

    async def speed(self) -> Speed:
        """See `Engine`."""
        states = await self._manager.get_internal_state()
        return speed_of([state.get("echo") for state in states])

    async def submit(self, endpoint: str, body: Mapping[str, Any], tag: LineTag) -> EngineAnswer:
        """See `Engine`."""
        request_id = f"{'resp_' if endpoint == RESPONSES else 'batch-'}{uuid4().hex}"
        fault = _fault(endpoint, body)
        if fault is not None:
            return EngineAnswer(status=400, body=fault, request_id=request_id)
        sent = offline_body(endpoint, body, tag, request_id, time.time())
        call = _Call(self._app, endpoint, self._headers, orjson.dumps(sent))
        work = asyncio.create_task(call.run())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            call.disconnect()
            self._manager.abort_request(request_id)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(work, ABORT_GRACE_S)
            raise
        return EngineAnswer(status=call.status, body=_answer(call), request_id=request_id)


def offline_body(
    endpoint: str, body: Mapping[str, Any], tag: LineTag, request_id: str, now: float
) -> dict[str, Any]:
    """What is sent for a line: its body as offline work under our request id.

    A tag that the client put into the line is replaced. A deadline that has just passed is
    left out, since SGLang would refuse it as the line's fault; the runner ends the batch.
    """
    sent = {**body, "service_tier": "flex"}
    sent.pop("echo", None)
    if tag.deadline_unix_s > now:
        sent["echo"] = {"deadline": tag.deadline_unix_s}
    if endpoint == RESPONSES:
        # Nobody can ask for it by id later, so SGLang need not keep it in memory.
        sent.update(request_id=request_id, store=False)
    else:
        sent["rid"] = request_id
    return sent


class _Call:
    """One request to an ASGI application and what it answered."""

    def __init__(
        self, app: AsgiApp, path: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        self._app = app
        self._scope = _scope(path, headers, len(body))
        self._body: bytes | None = body
        self._gone = asyncio.Event()
        self.status = 0
        self.content = bytearray()

    async def run(self) -> None:
        """Raises EngineGoneError if there is no answer."""
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception as error:
            if not self.status:
                raise EngineGoneError(f"the engine gave no answer: {error!r:.200}") from error
        if not self.status:
            raise EngineGoneError("the engine gave no answer")

    def disconnect(self) -> None:
        """As if the client had gone away."""
        self._gone.set()

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            self.content += message.get("body", b"")


def _scope(path: str, headers: list[tuple[bytes, bytes]], size_bytes: int) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [*headers, (b"content-length", str(size_bytes).encode())],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": {},
    }


def _answer(call: _Call) -> Mapping[str, Any]:
    """The answer's object; an error in OpenAI's shape, whatever shape SGLang gave it."""
    try:
        body = orjson.loads(bytes(call.content))
    except orjson.JSONDecodeError:
        body = bytes(call.content[:300]).decode("utf-8", "replace")
    if call.status < 400:
        if isinstance(body, dict):
            return {**body, "metadata": _texts(body["metadata"])} if "metadata" in body else body
        raise EngineGoneError("the engine's answer is not a JSON object")
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return body
    if isinstance(body, dict) and "message" in body:
        names = ("message", "type", "param", "code")
        return {"error": {name: body.get(name) for name in names}}
    kind = "server_error" if call.status >= 500 else "invalid_request_error"
    return {"error": {"message": str(body)[:300], "type": kind, "param": None, "code": call.status}}


def _texts(metadata: Any) -> Any:
    """OpenAI's metadata holds only strings, which its newest client checks in results; SGLang
    puts a list of weight versions there."""
    if not isinstance(metadata, dict):
        return metadata
    return {
        name: value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in metadata.items()
    }


def _fault(endpoint: str, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What SGLang would take but a batch cannot answer."""
    for name in ("background", "previous_response_id") if endpoint == RESPONSES else ():
        if body.get(name):
            message = f"{name} is not possible in a batch; leave it out"
            return {
                "error": {
                    "message": message,
                    "type": "invalid_request_error",
                    "param": name,
                    "code": "invalid_value",
                }
            }
    return None
