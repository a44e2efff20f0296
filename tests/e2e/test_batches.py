"""Batches on the real server, through the OpenAI client that SGLang brings along."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.clients.environment import ensure_client
from tests.e2e.conftest import SMALL_SERVER_FLAGS, ServerFactory
from tests.e2e.http_kit import until_idle
from tests.e2e.live_server import LiveServer
from tests.e2e.test_emulated_live import DEVICE
from tests.e2e.test_killers import CHAT, COMPLETIONS, KILLERS

pytestmark = pytest.mark.server

CLIENTS = Path(__file__).parents[1] / "clients"
RESPONSES = "/v1/responses"
EMBEDDINGS = "/v1/embeddings"
MOST_POLLS = 600


@pytest.fixture(scope="module")
def batch_server(start_server: ServerFactory, tmp_path_factory: Any) -> LiveServer:
    data_dir = tmp_path_factory.mktemp("data")
    named = ("--served-model-name", "m")
    return start_server(flags=[*SMALL_SERVER_FLAGS, *named, "--echo-data-dir", str(data_dir)])


@pytest.fixture(scope="module")
def client(batch_server: LiveServer) -> Iterator[openai.OpenAI]:
    with client_of(batch_server) as found:
        yield found


def client_of(server: LiveServer) -> openai.OpenAI:
    url = f"http://127.0.0.1:{server.port}/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {**body, "model": "m"}}


def submit(
    client: openai.OpenAI, tmp_path: Path, lines: list[dict[str, Any]], window: Any = "24h"
) -> Any:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    with path.open("rb") as source:
        uploaded = client.files.create(file=source, purpose="batch")
    assert client.files.wait_for_processing(uploaded.id).status == "processed"
    return client.batches.create(
        input_file_id=uploaded.id, endpoint=lines[0]["url"], completion_window=window
    )


def ended(client: openai.OpenAI, batch_id: str) -> Any:
    """Poll until the batch is over."""
    for _ in range(MOST_POLLS):
        batch = client.batches.retrieve(batch_id)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        time.sleep(0.2)
    raise AssertionError(f"{batch_id} never ended: {batch}")


def rows(client: openai.OpenAI, *file_ids: str | None) -> dict[str, Any]:
    """All rows of these files by custom_id, each there once."""
    texts = [client.files.content(file_id).text for file_id in file_ids if file_id]
    parsed = [json.loads(row) for text in texts for row in text.splitlines()]
    by_id = {row["custom_id"]: row for row in parsed}
    assert len(by_id) == len(parsed)
    return by_id


@pytest.mark.parametrize(
    ("url", "body", "kind"),
    [
        (
            CHAT,
            {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
            "chat.completion",
        ),
        (COMPLETIONS, {"prompt": "Once upon", "max_tokens": 3}, "text_completion"),
        (RESPONSES, {"input": "Hi", "max_output_tokens": 3}, "response"),
    ],
)
def test_a_batch_of_each_endpoint_is_answered_as_offline_work(
    client: openai.OpenAI, tmp_path: Path, url: str, body: dict[str, Any], kind: str
) -> None:
    batch = submit(client, tmp_path, [line(name, url, body) for name in ("a", "b")])
    batch = ended(client, batch.id)
    assert (batch.status, batch.request_counts.completed) == ("completed", 2), batch
    found = rows(client, batch.output_file_id, batch.error_file_id)
    assert set(found) == {"a", "b"}
    for row in found.values():
        assert row["response"]["status_code"] == 200 and row["error"] is None
        assert row["response"]["body"]["object"] == kind
        assert row["response"]["body"]["service_tier"] == "flex"
    assert 0 < batch.usage.output_tokens <= 6


def test_what_kills_a_stock_server_is_an_error_row_and_its_neighbours_finish(
    client: openai.OpenAI, batch_server: LiveServer, tmp_path: Path
) -> None:
    killers = {name: body for name, (url, body, _) in KILLERS.items() if url == COMPLETIONS}
    lines = [line(name, COMPLETIONS, body) for name, body in killers.items()]
    killers["grammar bomb"] = {"prompt": "a", "regex": "((a{1,1000}){1,1000}){1,1000}"}
    lines.append(line("grammar bomb", COMPLETIONS, killers["grammar bomb"]))
    for number in range(3):
        lines.insert(
            2 * number, line(f"good {number}", COMPLETIONS, {"prompt": "a", "max_tokens": 2})
        )
    batch = ended(client, submit(client, tmp_path, lines).id)
    assert batch.status == "completed"
    assert batch.request_counts.failed == len(killers)
    errors = rows(client, batch.error_file_id)
    assert {row["response"]["status_code"] for row in errors.values()} == {400}
    assert all(row["response"]["body"]["error"]["message"] for row in errors.values())
    assert set(rows(client, batch.output_file_id)) == {f"good {number}" for number in range(3)}
    assert batch_server.is_running() and batch_server.is_healthy()


def test_embeddings_of_a_server_that_generates_are_error_rows_that_say_so(
    client: openai.OpenAI, tmp_path: Path
) -> None:
    lines = [line(name, EMBEDDINGS, {"input": f"Say {name}"}) for name in ("a", "b")]
    batch = ended(client, submit(client, tmp_path, lines).id)
    assert (batch.status, batch.request_counts.failed) == ("completed", 2), batch
    for row in rows(client, batch.error_file_id).values():
        assert row["response"]["status_code"] == 400, row
        assert "embedding model" in row["response"]["body"]["error"]["message"]


def test_cancelled_lines_leave_the_engine_and_are_named(
    client: openai.OpenAI, batch_server: LiveServer, tmp_path: Path
) -> None:
    body = {"prompt": "Tell me", "max_tokens": 1500, "ignore_eos": True}
    batch = submit(client, tmp_path, [line(f"l{n}", COMPLETIONS, body) for n in range(4)])
    while client.batches.retrieve(batch.id).status == "validating":
        pass
    client.batches.cancel(batch.id)
    batch = ended(client, batch.id)
    assert batch.status == "cancelled"
    found = rows(client, batch.output_file_id, batch.error_file_id)
    assert set(found) == {f"l{n}" for n in range(4)}
    until_idle(batch_server)
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_lists_page_by_themselves(client: openai.OpenAI, tmp_path: Path) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    made = [submit(client, tmp_path, [line("a", COMPLETIONS, body)]).id for _ in range(3)]
    listed = [batch.id for batch in client.batches.list(limit=1)]
    assert listed[:3] == made[::-1] and len(set(listed)) == len(listed)
    files = [file.id for file in client.files.list(limit=2, purpose="batch")]
    assert len(files) == len(set(files)) >= 3
    for batch_id in made:
        ended(client, batch_id)


def test_errors_have_the_types_of_the_client(client: openai.OpenAI, tmp_path: Path) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.batches.retrieve("batch_of_nobody")
    assert missing.value.code == "not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        submit(client, tmp_path, [line("a", COMPLETIONS, {"prompt": "a"})], window="soon")
    assert refused.value.param == "completion_window"


def test_a_file_that_is_no_batch_fails_with_every_reason(
    client: openai.OpenAI, tmp_path: Path
) -> None:
    good = line("a", COMPLETIONS, {"prompt": "a"})
    batch = submit(client, tmp_path, [good, good, {**good, "custom_id": "b", "url": CHAT}])
    batch = ended(client, batch.id)
    assert batch.status == "failed" and batch.output_file_id is None
    assert [(error.code, error.line) for error in batch.errors.data] == [
        ("duplicate_custom_id", 2),
        ("url_mismatch", 3),
    ]


def test_the_newest_client_does_all_it_can(batch_server: LiveServer) -> None:
    script = CLIENTS / "with_openai.py"
    url = f"http://127.0.0.1:{batch_server.port}"
    command = [ensure_client("openai"), script, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def emulated(start_server: ServerFactory, tmp_path_factory: Any) -> LiveServer:
    data_dir = tmp_path_factory.mktemp("data")
    return start_server(flags=["--echo-emulate", DEVICE, "--echo-data-dir", str(data_dir)])


def test_a_killed_server_goes_on_and_answers_every_line_once(
    emulated: LiveServer, tmp_path: Path
) -> None:
    count = 120
    lines = [
        line(f"l{n}", COMPLETIONS, {"prompt": f"Question {n}", "max_tokens": 20 + n})
        for n in range(count)
    ]
    with client_of(emulated) as client:
        batch = submit(client, tmp_path, lines)
        completed = 0
        while completed < 10:
            completed = client.batches.retrieve(batch.id).request_counts.completed
        emulated.kill()
    assert completed < count
    emulated.start()
    with client_of(emulated) as client:
        batch = ended(client, batch.id)
        assert batch.status == "completed"
        assert batch.request_counts.completed == count
        assert len(rows(client, batch.output_file_id)) == count


def test_clients_that_leave_in_the_middle_leave_no_kv(emulated: LiveServer) -> None:
    before = until_idle(emulated)["memory_tokens"]["locked"]

    async def leave(client: httpx.AsyncClient, number: int) -> None:
        body = {"model": "m", "prompt": f"Tell {number}", "max_tokens": 1000, "stream": True}
        async with client.stream("POST", COMPLETIONS, json=body) as answer:
            assert answer.status_code == 200
            await anext(answer.aiter_lines())

    async def all_leave() -> None:
        url = f"http://127.0.0.1:{emulated.port}"
        limits = httpx.Limits(max_connections=200)
        # The last of them wait for a connection as long as all before them take: on a busy
        # machine longer than any one answer.
        timeout = httpx.Timeout(120, pool=None)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout) as client:
            await asyncio.gather(*(leave(client, number) for number in range(1_000)))

    asyncio.run(all_leave())
    assert until_idle(emulated)["memory_tokens"]["locked"] == before == 0
