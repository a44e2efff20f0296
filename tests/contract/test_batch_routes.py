"""The batch API on SGLang's own application, and lines through its handlers; no engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from sglang.srt import runtime_context
from sglang.srt.entrypoints import http_server
from sglang.srt.entrypoints.http_server import app
from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
from starlette.testclient import TestClient

from echo_sglang.adapter.batch_engine import AppEngine
from echo_sglang.adapter.batches import (
    check_batch_args,
    install_batches,
    open_batches,
    with_service,
)
from echo_sglang.adapter.drain import Drain
from echo_sglang.config import EchoConfig
from echo_sglang.errors import ConfigError, EchoError
from echo_sglang.service.http_files import files_router
from echo_sglang.service.model import EngineAnswer, LineTag

TAG = LineTag(batch_id="b", custom_id="c", deadline_unix_s=4e9)


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    """Without a service: the routes are there and say how to get one."""
    install_batches(None, EchoConfig())


def ask(path: str, **body: Any) -> EngineAnswer:
    manager = SimpleNamespace(is_ready=lambda: True, abort_request=lambda rid: None)
    engine = AppEngine(app, manager, api_key=None, max_in_flight=1)
    return asyncio.run(engine.submit(path, body, TAG))


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/files/x/content"])
def test_a_server_without_a_data_folder_says_what_to_do(path: str) -> None:
    client = TestClient(app)
    answer = client.get(path)
    assert answer.status_code == 501
    error = answer.json()["error"]
    assert error["code"] == "batch_service_off" and "--echo-data-dir" in error["message"]
    client.close()


def test_a_body_that_sglang_refuses_is_an_error_in_openais_shape() -> None:
    answer = ask("/v1/chat/completions", model="m", messages="not a list")
    assert answer.status == 400
    assert "messages" in answer.body["error"]["message"]


def test_a_line_reaches_the_handler_of_its_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    async def handle_request(request: Any, _: Any) -> Any:
        seen.append(request)
        return OpenAIServingChat.create_error_response(
            SimpleNamespace(), "no such thing", status_code=404, param="x"
        )

    handler = SimpleNamespace(handle_request=handle_request)
    monkeypatch.setattr(app.state, "openai_serving_chat", handler, raising=False)
    answer = ask("/v1/chat/completions", model="m", messages=[{"role": "user", "content": "Hi"}])
    assert answer.status == 404
    assert answer.body == {
        "error": {
            "message": "no such thing",
            "type": "BadRequestError",
            "param": "x",
            "code": 404,
        }
    }
    [request] = seen
    assert request.service_tier == "flex" and request.echo == {"deadline": 4e9}
    assert request.rid == answer.request_id


def test_flags_that_do_not_go_together_are_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="--echo-data-dir"):
        open_batches(EchoConfig(store_url="postgresql://x"))
    config = EchoConfig(data_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="--tokenizer-worker-num 2"):
        check_batch_args(SimpleNamespace(tokenizer_worker_num=2), config)
    missing = EchoConfig(
        data_dir=str(tmp_path),
        batch_webhook_url="http://127.0.0.1/x",
        batch_webhook_secret_file=str(tmp_path / "none"),
    )
    with pytest.raises(ConfigError, match="webhook-secret-file"):
        open_batches(missing)


def test_two_servers_cannot_have_one_data_folder(tmp_path: Any) -> None:
    config = EchoConfig(data_dir=str(tmp_path))
    first = open_batches(config)
    assert first is not None
    with pytest.raises(EchoError, match=str(tmp_path)):
        open_batches(config)
    asyncio.run(first.stop())
    second = open_batches(config)
    assert second is not None
    asyncio.run(second.stop())


def test_the_service_lives_within_the_server_and_ends_when_it_begins_to_stop(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = open_batches(EchoConfig(data_dir=str(tmp_path)))
    assert service is not None
    manager = SimpleNamespace(gracefully_exit=False, is_ready=lambda: True, rid_to_state={})
    given_back: list[object] = []

    async def set_internal_state(request: object) -> None:
        given_back.append(request)

    manager.set_internal_state = set_internal_state
    drain = Drain()
    monkeypatch.setattr(http_server, "_global_state", SimpleNamespace(tokenizer_manager=manager))
    monkeypatch.setattr(runtime_context, "get_serving", lambda: SimpleNamespace(api_key="k"))
    order: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        order.append("engine up")
        yield
        order.append("engine down")

    served = FastAPI(lifespan=with_service(lifespan, service, 4, drain))
    served.include_router(files_router(lambda: service))
    client = TestClient(served)
    assert client.get("/v1/files").status_code == 503
    with client:
        assert order == ["engine up"]
        assert client.get("/v1/files").status_code == 200
        client.portal.call(drain.begin, manager, 5.0)
        for _ in range(500):
            answer = client.get("/v1/files")
            if answer.status_code == 503:
                break
            time.sleep(0.02)
        assert answer.json()["error"]["code"] == "unavailable"
        assert answer.headers["retry-after"]
        for _ in range(500):
            if manager.gracefully_exit:
                break
            time.sleep(0.02)
        assert manager.gracefully_exit and len(given_back) == 1
    assert order == ["engine up", "engine down"]
