"""A server started with --echo-emulate: real HTTP, no weights, an accelerator's speed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import ServerFactory
from tests.e2e.http_kit import OFFLINE, until, until_idle
from tests.e2e.live_server import LiveServer

pytestmark = pytest.mark.server

DEVICE = "A100-80G:Llama-3.1-8B"
FLOOD = 500
CLIENTS = 50
DOCUMENT = "A server that is asked everything at once answers those first who wait. " * 80


@pytest.fixture(scope="module", params=["echo", "stock"])
def emulated(request: pytest.FixtureRequest, start_server: ServerFactory) -> LiveServer:
    """KV of an A100 is asked for, far more than the computed test model could hold here."""
    off = ["--echo-off"] if request.param == "stock" else []
    return start_server(flags=["--echo-emulate", DEVICE, *off])


def test_answers_have_the_length_asked_for_and_name_their_tier(emulated: LiveServer) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0, "model": "m"}
    response = emulated.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] == 20


def test_the_pool_is_that_of_the_device(emulated: LiveServer) -> None:
    info = emulated.get("/server_info").json()
    assert abs(info["max_total_num_tokens"] - 426_788) < 100


def test_tokens_come_one_by_one(emulated: LiveServer) -> None:
    body = {
        "input_ids": list(range(1000, 1600)),
        "sampling_params": {"max_new_tokens": 16, "temperature": 0},
        "stream": True,
    }
    events = list(emulated.iterate("/generate", body))
    assert len(events) >= 8
    assert events[-1]["meta_info"]["completion_tokens"] == 16
    # A decode step of this device takes 12.4 ms at least, so 15 of them cannot take less.
    assert events[-1]["meta_info"]["e2e_latency"] > 15 * 0.0124


@pytest.mark.parametrize("field", ["return_logprob", "return_hidden_states"])
def test_what_only_a_model_could_answer_is_refused(emulated: LiveServer, field: str) -> None:
    body = {"text": "Hello", "sampling_params": {"max_new_tokens": 2}, field: True}
    response = emulated.post("/generate", body)
    assert response.status_code == 400, response.text
    assert emulated.get("/health_generate").status_code == 200


def in_the_scheduler(status: dict[str, Any]) -> int:
    """Offline requests that have got there, answered ones too."""
    requests, counters = status["requests"], status["counters"]
    known = requests["offline_pooled"] + requests["offline_running"]
    return int(known + counters.get("offline_finished", 0))


@pytest.mark.parametrize("emulated", ["echo"], indirect=True)
def test_an_online_request_passes_a_flood_of_offline_ones(emulated: LiveServer) -> None:
    """Preparing the flood takes the API process seconds; the scheduler has not seen all of it
    when the answer to a message that came after it is complete."""
    params = {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True}
    prompts = [f"{DOCUMENT} Question {i}" for i in range(FLOOD)]
    before = in_the_scheduler(until_idle(emulated))
    with ThreadPoolExecutor(max_workers=1) as client:
        body = {"text": prompts, "sampling_params": params, **OFFLINE}
        flood = client.submit(emulated.post, "/generate", body)
        until(emulated, lambda s: in_the_scheduler(s) > before, "the first of the flood")
        online = {"text": "Hello", "sampling_params": {"max_new_tokens": 2, "temperature": 0}}
        response = emulated.post("/generate", online)
        seen = in_the_scheduler(emulated.get("/echo/status").json()) - before
        assert response.status_code == 200, response.text
        assert seen < FLOOD
        answers = flood.result().json()
    assert [answer["meta_info"]["completion_tokens"] for answer in answers] == [1] * FLOOD
    assert in_the_scheduler(until_idle(emulated)) - before == FLOOD


@pytest.mark.parametrize("emulated", ["echo"], indirect=True)
def test_every_request_of_a_flood_of_chats_is_answered(emulated: LiveServer) -> None:
    def ask(number: int) -> Any:
        messages = [{"role": "user", "content": f"{DOCUMENT} Question {number}"}]
        body = {"model": "m", "messages": messages, "max_tokens": 2, "ignore_eos": True}
        return emulated.post("/v1/chat/completions", {**body, **OFFLINE})

    with ThreadPoolExecutor(max_workers=CLIENTS) as clients:
        responses = list(clients.map(ask, range(4 * CLIENTS)))
    assert {response.status_code for response in responses} == {200}
    answers = [response.json() for response in responses]
    assert {answer["service_tier"] for answer in answers} == {"flex"}
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [2] * (4 * CLIENTS)
    until_idle(emulated)
