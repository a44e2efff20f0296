"""A supervised server through crash, hang, drain and crash loop; the real engine, emulated speed.

The tests of one supervisor follow each other: every restart takes the better part of a minute.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from echo_sglang.service.database import SQLITE_NAME
from tests.e2e.http_kit import OFFLINE, generate, prompt
from tests.e2e.supervised_server import SupervisedServer, alive

pytestmark = pytest.mark.server

HANG_S = "5"
FLAGS = [
    *("--echo-emulate", "A100-80G:Llama-3.1-8B"),
    *("--echo-hang-s", HANG_S),
    *("--echo-drain-s", "30"),
]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
ENDLESS = 4000


@pytest.fixture(scope="module")
def server(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupervisedServer]:
    folder = tmp_path_factory.mktemp("supervised")
    flags = [*FLAGS, "--echo-data-dir", str(folder / "data")]
    found = SupervisedServer(model_path=model_path, log_path=folder / "serve.log", flags=flags)
    found.spawn()
    yield found
    found.stop()


def assert_unavailable(response: httpx.Response) -> None:
    """503 as OpenAI's clients know it: an error object, and when to come back."""
    assert response.status_code == 503, response.text
    assert int(response.headers["retry-after"]) >= 1
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def status_of(server: SupervisedServer) -> int:
    """Of a tiny request; 503 while no engine is there, never a refused connection.

    0 if the engine died while it had the request.
    """
    try:
        response = server.post("/v1/chat/completions", CHAT)
    except (httpx.ReadError, httpx.RemoteProtocolError):
        return 0
    if response.status_code == 503:
        assert_unavailable(response)
    return response.status_code


def until_served(server: SupervisedServer) -> list[int]:
    """Ask until a request is answered; the other statuses that were seen.

    Returns when the supervisor counts the engine as ready, since only then it may hang.
    """
    seen: list[int] = []

    def served() -> bool:
        status = status_of(server)
        seen.append(status)
        return status == 200

    server.until(served, "an answer")
    server.until(server.is_ready, "readiness")
    return seen[:-1]


def in_background(server: SupervisedServer, body: dict[str, Any]) -> tuple[threading.Thread, dict]:
    """Stream a request in a thread; its last event, or the error that ended it."""
    result: dict[str, Any] = {"started": threading.Event()}

    def run() -> None:
        try:
            for event in server.iterate("/generate", body):
                result["last"] = event
                result["started"].set()
        except (httpx.HTTPError, AssertionError) as error:
            result["error"] = error
        result["started"].set()

    thread = threading.Thread(target=run)
    thread.start()
    assert result["started"].wait(60)
    return thread, result


def line_in_flight(server: SupervisedServer) -> str:
    """A batch of one line that takes for ever, once the engine has it; its id."""
    body = {"model": "m", "prompt": "Tell me", "max_tokens": ENDLESS, "ignore_eos": True}
    entry = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    source = {"file": ("in.jsonl", json.dumps(entry).encode())}
    url = f"http://127.0.0.1:{server.port}/v1"
    with httpx.Client(trust_env=False, timeout=60) as client:
        data = {"purpose": "batch"}
        file = client.post(f"{url}/files", data=data, files=source).raise_for_status().json()
        wanted = {
            "input_file_id": file["id"],
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        }
        batch = client.post(f"{url}/batches", json=wanted).raise_for_status().json()
    server.until(
        lambda: server.get("/echo/status").json()["requests"]["offline_running"], "the line"
    )
    return str(batch["id"])


def crashes_of(server: SupervisedServer, batch_id: str) -> int:
    """What the store holds against the batch's only line."""
    path = server.log_path.parent / "data" / SQLITE_NAME
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        query = "SELECT crashes FROM lines WHERE batch_id = ?"
        return int(connection.execute(query, (batch_id,)).fetchone()[0])
    finally:
        connection.close()


def cancel(server: SupervisedServer, batch_id: str) -> None:
    """So that its line is not in the way of the next test."""
    assert server.post(f"/v1/batches/{batch_id}/cancel", {}).status_code == 200
    server.until(
        lambda: server.get(f"/v1/batches/{batch_id}").json()["status"] == "cancelled", "its end"
    )


def test_until_the_first_engine_is_ready_the_port_answers_503(server: SupervisedServer) -> None:
    server.until(lambda: b"started" in server.log_path.read_bytes(), "an engine")
    assert_unavailable(server.post("/v1/chat/completions", CHAT))
    assert_unavailable(server.get("/health"))
    before = until_served(server)
    assert set(before) <= {503}


def test_an_engine_whose_scheduler_is_killed_mid_decode_is_replaced(
    server: SupervisedServer,
) -> None:
    batch_id = line_in_flight(server)
    thread, result = in_background(server, generate(prompt(1, 20), ENDLESS, {}))
    old = server.engine_processes()
    server.scheduler().kill()
    seen = until_served(server)
    assert 503 in seen and set(seen) <= {0, 503}
    thread.join(60)
    assert "error" in result or "error" in result["last"]
    assert not any(alive(process) for process in old)
    assert "crashed with exit code -9" in server.log_tail(1000)
    assert "it was ended from outside" in server.log_tail(1000)
    assert crashes_of(server, batch_id) == 0
    cancel(server, batch_id)


def test_an_engine_whose_scheduler_is_stopped_is_found_to_hang_and_replaced(
    server: SupervisedServer,
) -> None:
    batch_id = line_in_flight(server)
    old = server.engine_processes()
    server.scheduler().send_signal(signal.SIGSTOP)
    seen = until_served(server)
    assert 503 in seen and set(seen) <= {0, 503}
    assert not any(alive(process) for process in old)
    assert f"it hung: its scheduler was silent for {HANG_S} s" in server.log_tail(1000)
    assert crashes_of(server, batch_id) == 1  # a request may make a scheduler hang
    cancel(server, batch_id)


def test_sigterm_gives_offline_work_back_finishes_online_and_ends_with_zero(
    server: SupervisedServer,
) -> None:
    engine = server.engine_processes()
    online_thread, online = in_background(server, generate(prompt(2, 20), 200, {}))
    offline_thread, offline = in_background(server, generate(prompt(3, 20), ENDLESS, OFFLINE))
    server.signal(signal.SIGTERM)
    offline_thread.join(60)
    online_thread.join(60)
    assert online["last"]["meta_info"]["completion_tokens"] == 200
    reason = offline["last"]["meta_info"]["finish_reason"]
    assert (reason["type"], reason["status_code"]) == ("abort", 503)
    assert "given back unfinished" in reason["message"]
    assert server.exit_code() == 0, server.log_tail()
    assert not any(alive(process) for process in engine)


def test_an_engine_does_not_outlive_a_supervisor_that_is_killed(
    model_path: str, tmp_path: Path
) -> None:
    server = SupervisedServer(model_path=model_path, log_path=tmp_path / "serve.log", flags=FLAGS)
    server.spawn()
    server.until(server.engine_processes, "an engine")
    engine = server.engine_processes()
    server.signal(signal.SIGKILL)
    server.exit_code()
    server.until(lambda: not any(alive(process) for process in engine), "the engine's end")
    server.stop()


def test_a_crash_loop_ends_and_says_why(tmp_path: Path) -> None:
    nowhere = tmp_path / "no-model"
    server = SupervisedServer(
        model_path=str(nowhere),
        log_path=tmp_path / "serve.log",
        flags=["--echo-most-failures", "2"],
    )
    server.spawn()
    assert server.exit_code() == 1
    said = [line for line in server.log_tail(500).splitlines() if "[echo-sglang serve]" in line]
    assert "failure 1 of at most 2 in a row" in "\n".join(said)
    assert "2 failures in a row" in said[-1] and "exit code 1" in said[-1]
    assert any(str(nowhere) in line for line in said), "the engine's last lines"
    server.stop()


def test_refused_flags_are_not_tried_again(model_path: str, tmp_path: Path) -> None:
    server = SupervisedServer(
        model_path=model_path, log_path=tmp_path / "serve.log", flags=["--slo-ttft-ms", "-1"]
    )
    server.spawn()
    assert server.exit_code() == 2
    assert "--slo-ttft-ms -1.0: allowed is above 0" in server.log_tail()
    server.stop()
