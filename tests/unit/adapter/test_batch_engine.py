"""The engine over an ASGI application: what is sent, what comes back, how a line is aborted."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from echo_sglang.adapter.batch_engine import AppEngine, offline_body
from echo_sglang.service.errors import EngineGoneError
from echo_sglang.service.model import EngineAnswer, LineTag

CHAT = "/v1/chat/completions"
TAG = LineTag(batch_id="b", custom_id="c", deadline_unix_s=2e9)


class Manager:
    """What the engine needs of a tokenizer manager."""

    def __init__(self) -> None:
        self.aborted: list[str] = []
        self.up = True

    def is_ready(self) -> bool:
        return self.up

    def abort_request(self, request_id: str) -> None:
        self.aborted.append(request_id)


def engine_of(app: Any, manager: Manager | None = None) -> AppEngine:
    return AppEngine(app, manager or Manager(), api_key="key", max_in_flight=7)


def ask(app: Any, path: str = CHAT, **body: Any) -> EngineAnswer:
    return asyncio.run(engine_of(app).submit(path, body, TAG))


def test_a_line_comes_in_as_offline_work_with_key_and_deadline() -> None:
    app = FastAPI()
    seen: dict[str, Any] = {}

    @app.post(CHAT)
    async def chat(request: Request) -> dict[str, Any]:
        seen.update(await request.json(), key=request.headers["authorization"])
        return {"object": "chat.completion"}

    answer = ask(app, model="m", service_tier="priority", echo={"ttft_ms": 1})
    assert (answer.status, answer.body) == (200, {"object": "chat.completion"})
    assert seen["service_tier"] == "flex" and seen["echo"] == {"deadline": 2e9}
    assert seen["rid"] == answer.request_id and seen["key"] == "Bearer key"


def test_a_deadline_that_has_just_passed_is_not_the_fault_of_the_line() -> None:
    assert "echo" not in offline_body(CHAT, {"echo": {"deadline": 1}}, TAG, "r", now=2e9)


def test_responses_are_not_kept_for_nobody() -> None:
    sent = offline_body("/v1/responses", {"input": "Hi", "store": True}, TAG, "r", now=0.0)
    assert sent["store"] is False and sent["request_id"] == "r" and "rid" not in sent


@pytest.mark.parametrize("name", ["background", "previous_response_id"])
def test_what_a_batch_cannot_do_for_a_response_is_refused(name: str) -> None:
    answer = ask(FastAPI(), "/v1/responses", **{name: "x"})
    assert answer.status == 400 and answer.body["error"]["param"] == name


def test_errors_have_one_shape_whatever_the_application_gave() -> None:
    app = FastAPI()
    flat = {"object": "error", "message": "bad", "type": "BadRequest", "param": "n", "code": 400}

    @app.post(CHAT)
    async def chat() -> JSONResponse:
        return JSONResponse(flat, 400)

    answer = ask(app)
    assert answer.status == 400
    del flat["object"]
    assert answer.body == {"error": flat}
    missing = ask(app, "/v1/embeddings")
    assert missing.status == 404 and set(missing.body["error"]) == set(flat)


def test_the_metadata_of_an_answer_holds_only_texts() -> None:
    app = FastAPI()
    versions = [{"version": "default", "start": 0, "end": 4}]

    @app.post(CHAT)
    async def chat() -> dict[str, Any]:
        return {"metadata": {"weight_version": "default", "weight_versions": versions}}

    metadata = ask(app).body["metadata"]
    assert metadata["weight_version"] == "default"
    assert orjson.loads(metadata["weight_versions"]) == versions


def test_an_application_that_breaks_before_it_answers_is_a_lost_engine() -> None:
    async def broken(*_: Any) -> None:
        raise ConnectionError("gone")

    with pytest.raises(EngineGoneError, match="gone"):
        ask(broken)


def test_an_answer_that_is_no_object_is_a_lost_engine() -> None:
    async def odd(_: Any, __: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": orjson.dumps([1])})

    with pytest.raises(EngineGoneError, match="not a JSON object"):
        ask(odd)


def test_a_cancelled_line_is_aborted_and_seen_as_a_client_that_left() -> None:
    manager = Manager()
    left: list[bool] = []

    async def waits(_: Any, receive: Any, __: Any) -> None:
        await receive()
        left.append((await receive())["type"] == "http.disconnect")

    async def run() -> None:
        line = asyncio.create_task(engine_of(waits, manager).submit(CHAT, {}, TAG))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        line.cancel()
        with pytest.raises(asyncio.CancelledError):
            await line

    asyncio.run(run())
    assert left == [True] and len(manager.aborted) == 1


def test_nothing_is_wanted_while_the_server_is_not_ready() -> None:
    manager = Manager()
    engine = engine_of(FastAPI(), manager)
    assert engine.ready and engine.capacity == 7
    manager.up = False
    assert not engine.ready and engine.capacity == 0
