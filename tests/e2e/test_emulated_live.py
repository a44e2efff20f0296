"""A server started with --echo-emulate: real HTTP, no weights, an accelerator's speed."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import ServerFactory
from tests.e2e.live_server import LiveServer

pytestmark = pytest.mark.server

DEVICE = "A100-80G:Llama-3.1-8B"


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
