"""The batch API over a real store, real files and the real runner; only the engine is made up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from echo_sglang.service.forecast import Speed
from echo_sglang.service.http_batches import batches_router
from echo_sglang.service.http_files import files_router
from echo_sglang.service.model import EngineAnswer, LineTag
from echo_sglang.service.runner import RunnerSettings
from echo_sglang.service.service import BatchService, ServiceSettings, open_service

CHAT = "/v1/chat/completions"
POLLS = 2_000


class OpenGate:
    """An engine that answers every line at once, or holds it until `open` is set.

    A body with "status" is answered with that status.
    """

    def __init__(self) -> None:
        self.open = True
        self.tags: list[LineTag] = []
        self.now_speed = Speed()

    ready = True
    capacity = 8

    async def speed(self) -> Speed:
        return self.now_speed

    async def submit(self, endpoint: str, body: Mapping[str, Any], tag: LineTag) -> EngineAnswer:
        self.tags.append(tag)
        while not self.open and "held" in body:
            await asyncio.sleep(0.002)
        status = body.get("status", 200)
        good = {"object": "chat.completion", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
        answer = good if status == 200 else {"error": {"message": "no"}}
        return EngineAnswer(status=status, body=answer, request_id="r")


class World:
    """One server: its client, its service and its engine."""

    def __init__(self, client: TestClient, service: BatchService, engine: OpenGate) -> None:
        self.client = client
        self.service = service
        self.engine = engine

    def upload(self, content: bytes, name: str = "in.jsonl", **headers: str) -> str:
        answer = self.client.post(
            "/v1/files",
            data={"purpose": "batch"},
            files={"file": (name, content)},
            headers=headers,
        )
        assert answer.status_code == 200, answer.text
        file_id: str = answer.json()["id"]
        return file_id

    def submit(self, content: bytes, **fields: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/batches", json=wanted(self.upload(content), **fields))
        assert answer.status_code == 200, answer.text
        batch: dict[str, Any] = answer.json()
        return batch

    def until(self, batch_id: str, *states: str, completed: int = 0) -> dict[str, Any]:
        """Ask for the batch until it is in one of the states with so many lines completed."""
        batch: dict[str, Any] = {}
        for _ in range(POLLS):
            batch = self.client.get(f"/v1/batches/{batch_id}").json()
            if batch["status"] in states and batch["request_counts"]["completed"] >= completed:
                return batch
            time.sleep(0.005)
        raise AssertionError(f"never {states}: {batch}")


@contextmanager
def world(data_dir: Path, **settings: Any) -> Iterator[World]:
    """A server that lives as long as the block, asked without a socket."""
    engine = OpenGate()
    app, service = _app(data_dir, engine, settings)
    with TestClient(app) as client:
        yield World(client, service, engine)


@contextmanager
def served(data_dir: Path, **settings: Any) -> Iterator[tuple[str, OpenGate]]:
    """The URL of such a server on a free loopback port, and its engine."""
    engine = OpenGate()
    app, _ = _app(data_dir, engine, settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", engine
    finally:
        server.should_exit = True
        thread.join()


def _app(
    data_dir: Path, engine: OpenGate, settings: dict[str, Any]
) -> tuple[FastAPI, BatchService]:
    settings.setdefault("runner", RunnerSettings(name="", poll_s=0.02))
    service = open_service(ServiceSettings(data_dir=data_dir, **settings), time.time)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start(engine)
        yield
        await service.stop()

    app = FastAPI(lifespan=lifespan)
    app.include_router(files_router(lambda: service))
    app.include_router(batches_router(lambda: service))
    return app, service


def wanted(file_id: str, **fields: Any) -> dict[str, Any]:
    """The body of POST /v1/batches."""
    return {
        "input_file_id": file_id,
        "endpoint": CHAT,
        "completion_window": "24h",
        **fields,
    }


def line(custom_id: str, **body: Any) -> bytes:
    """One input line with its newline."""
    return (
        orjson.dumps(
            {
                "custom_id": custom_id,
                "method": "POST",
                "url": CHAT,
                "body": {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **body},
            }
        )
        + b"\n"
    )


def lines(*custom_ids: str, **body: Any) -> bytes:
    return b"".join(line(custom_id, **body) for custom_id in custom_ids)


def rows(text: str) -> dict[str, Any]:
    """The rows of a result file by custom_id; each may be there once."""
    parsed = [orjson.loads(row) for row in text.splitlines()]
    by_id = {row["custom_id"]: row for row in parsed}
    assert len(by_id) == len(parsed)
    return by_id
