"""service_tier and echo over HTTP: what is taken, what is refused, what the answer names."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.e2e.conftest import ServerFactory
from tests.e2e.live_server import STOCK_MODULE, LiveServer

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GENERATE = "/generate"
RESPONSES = "/v1/responses"
ENDPOINTS = (CHAT, COMPLETIONS, RESPONSES, GENERATE)

TIERS = {
    None: "default",
    "auto": "default",
    "default": "default",
    "priority": "default",
    "scale": "default",
    "fast": "default",
    "flex": "flex",
}

FAR_AHEAD_S = 3_600.0

BAD_EXTRAS: dict[str, tuple[Any, str]] = {
    "negative": ({"ttft_ms": -5}, "echo.ttft_ms"),
    "zero": ({"tpot_ms": 0}, "echo.tpot_ms"),
    "text": ({"ttft_ms": "soon"}, "echo.ttft_ms"),
    "truth": ({"tpot_ms": True}, "echo.tpot_ms"),
    "unknown": ({"ttft": 5}, "echo.ttft"),
    "past": ({"deadline": 1.0}, "echo.deadline"),
    "list": (["ttft_ms"], "echo"),
}


@pytest.fixture(scope="module")
def model(server: LiveServer) -> str:
    name: str = server.get("/v1/models").json()["data"][0]["id"]
    return name


def body_for(path: str, model: str, **fields: Any) -> dict[str, Any]:
    match path:
        case "/generate":
            params = {"max_new_tokens": 4, "ignore_eos": True, "temperature": 0}
            return {"text": "The sea is", "sampling_params": params, **fields}
        case "/v1/completions":
            return {"model": model, "prompt": "The sea is", "max_tokens": 4, **fields}
        case "/v1/responses":
            return {"model": model, "input": "Hi", "max_output_tokens": 8, **fields}
        case _:
            messages = [{"role": "user", "content": "Hi"}]
            return {"model": model, "messages": messages, "max_tokens": 4, **fields}


def tier_of(path: str, answer: dict[str, Any]) -> str | None:
    return answer["meta_info"].get("service_tier") if path == GENERATE else answer["service_tier"]


def refusal_of(response: Any) -> dict[str, Any]:
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json().get("error", response.json())
    return error


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("tier", TIERS)
def test_the_answer_names_the_tier_used(
    server: LiveServer, model: str, path: str, tier: str | None
) -> None:
    fields = {} if tier is None else {"service_tier": tier}
    response = server.post(path, body_for(path, model, **fields))
    assert response.status_code == 200, response.text
    assert tier_of(path, response.json()) == TIERS[tier]


@pytest.mark.parametrize("path", ENDPOINTS)
def test_good_extras_are_taken(server: LiveServer, model: str, path: str) -> None:
    extras = {"ttft_ms": 900, "tpot_ms": 120.5, "deadline": time.time() + FAR_AHEAD_S}
    body = body_for(path, model, service_tier="flex", echo=extras)
    response = server.post(path, body)
    assert response.status_code == 200, response.text
    assert tier_of(path, response.json()) == "flex"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, GENERATE])
@pytest.mark.parametrize("tier", [None, "flex"])
def test_every_stream_event_names_the_tier(
    server: LiveServer, model: str, path: str, tier: str | None
) -> None:
    fields = {} if tier is None else {"service_tier": tier}
    events = server.stream(path, body_for(path, model, **fields))
    assert len(events) > 1
    assert {tier_of(path, event) for event in events} == {TIERS[tier]}


def test_every_response_object_of_a_responses_stream_names_the_tier(
    server: LiveServer, model: str
) -> None:
    events = server.stream(RESPONSES, body_for(RESPONSES, model, service_tier="flex"))
    objects = [event["response"] for event in events if "response" in event]
    assert [item["service_tier"] for item in objects] == ["flex"] * 3


def test_a_usage_chunk_names_the_tier_too(server: LiveServer, model: str) -> None:
    options = {"include_usage": True}
    body = body_for(CHAT, model, service_tier="flex", stream_options=options)
    last = server.stream(CHAT, body)[-1]
    assert last["usage"]["completion_tokens"] > 0
    assert last["service_tier"] == "flex"


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_tier_is_a_400_naming_the_field(
    server: LiveServer, model: str, path: str, stream: bool
) -> None:
    body = body_for(path, model, service_tier="batch", stream=stream)
    assert "service_tier" in refusal_of(server.post(path, body))["message"]


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BAD_EXTRAS)
def test_bad_extras_are_a_400_naming_the_field(
    server: LiveServer, model: str, path: str, stream: bool, name: str
) -> None:
    extras, field = BAD_EXTRAS[name]
    body = body_for(path, model, echo=extras, stream=stream)
    error = refusal_of(server.post(path, body))
    assert field in error["message"]


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("literal", ["NaN", "Infinity", "1e999"])
def test_an_slo_that_json_cannot_say_is_a_400(
    server: LiveServer, model: str, path: str, literal: str
) -> None:
    text = json.dumps(body_for(path, model, echo={"ttft_ms": 77}))
    assert server.post_text(path, text.replace("77", literal)).status_code == 400


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES])
def test_the_openai_errors_say_the_field_in_param(
    server: LiveServer, model: str, path: str
) -> None:
    body = body_for(path, model, echo={"ttft_ms": -5})
    assert refusal_of(server.post(path, body))["param"] == "echo.ttft_ms"


@pytest.mark.parametrize("flag", [True, False])
def test_the_openai_echo_flag_of_completions_still_works(
    server: LiveServer, model: str, flag: bool
) -> None:
    body = body_for(COMPLETIONS, model, service_tier="flex", echo=flag)
    answer = server.post(COMPLETIONS, body).json()
    assert answer["choices"][0]["text"].startswith("The sea is") is flag
    assert answer["service_tier"] == "flex"


def test_extras_do_not_switch_the_prompt_echo_on(server: LiveServer, model: str) -> None:
    body = body_for(COMPLETIONS, model, echo={"ttft_ms": 900})
    answer = server.post(COMPLETIONS, body).json()
    assert not answer["choices"][0]["text"].startswith("The sea is")


def test_a_ready_made_tag_in_custom_params_is_honoured(server: LiveServer, model: str) -> None:
    custom_params = {"echo": {"class": "offline"}, "mine": 1}
    chat = server.post(CHAT, body_for(CHAT, model, custom_params=custom_params))
    assert chat.json()["service_tier"] == "flex"
    params = {"max_new_tokens": 2, "custom_params": custom_params}
    plain = server.post(GENERATE, {"text": "Hi", "sampling_params": params})
    assert plain.json()["meta_info"]["service_tier"] == "flex"


def test_a_tag_said_in_both_ways_is_a_400(server: LiveServer, model: str) -> None:
    custom_params = {"echo": {"class": "offline"}}
    body = body_for(CHAT, model, service_tier="flex", custom_params=custom_params)
    assert "custom_params.echo" in refusal_of(server.post(CHAT, body))["message"]


def test_a_bad_ready_made_tag_is_a_400(server: LiveServer) -> None:
    params = {"max_new_tokens": 2, "custom_params": {"echo": {"class": "batch"}}}
    response = server.post(GENERATE, {"text": "Hi", "sampling_params": params})
    assert "custom_params.echo.class" in refusal_of(response)["message"]


def test_every_item_of_a_batch_carries_the_tier(server: LiveServer, model: str) -> None:
    params = {"max_new_tokens": 2, "n": 2}
    body = {"text": ["a", "b"], "sampling_params": params, "service_tier": "flex"}
    answers = server.post(GENERATE, body).json()
    assert [answer["meta_info"]["service_tier"] for answer in answers] == ["flex"] * 4
    events = server.stream(GENERATE, body)
    assert {event["index"] for event in events} == {0, 1, 2, 3}
    assert {event["meta_info"]["service_tier"] for event in events} == {"flex"}
    completions = body_for(COMPLETIONS, model, prompt=["a", "b"], n=2, service_tier="flex")
    answer = server.post(COMPLETIONS, completions).json()
    assert (len(answer["choices"]), answer["service_tier"]) == (4, "flex")


def test_items_of_one_batch_may_differ_in_class(server: LiveServer) -> None:
    offline = {"max_new_tokens": 2, "custom_params": {"echo": {"class": "offline"}}}
    body = {"text": ["a", "b"], "sampling_params": [offline, {"max_new_tokens": 2}]}
    answers = server.post(GENERATE, body).json()
    assert [answer["meta_info"]["service_tier"] for answer in answers] == ["flex", "default"]


def test_both_classes_share_one_cached_prefix(server: LiveServer) -> None:
    text = "A prompt that is long enough to be cached by whoever comes first. " * 4
    body = {"text": text, "sampling_params": {"max_new_tokens": 2}}
    server.post(GENERATE, {**body, "service_tier": "flex"})
    meta = server.post(GENERATE, body).json()["meta_info"]
    assert meta["cached_tokens"] >= meta["prompt_tokens"] - 1


@pytest.fixture(scope="module")
def server_without_echo(start_server: ServerFactory) -> LiveServer:
    """The same patched SGLang, not started by Echo: its plugin registers nothing."""
    return start_server(module=STOCK_MODULE, environment={"SGLANG_PLUGINS": "echo,echo_cpu"})


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, GENERATE])
@pytest.mark.parametrize("tier", ["flex", "batch", 5])
def test_without_echo_any_tier_is_ignored(
    server_without_echo: LiveServer, model: str, path: str, tier: object
) -> None:
    response = server_without_echo.post(path, body_for(path, model, service_tier=tier))
    assert response.status_code == 200, response.text
    assert "service_tier" not in response.text


def test_without_echo_a_responses_answer_names_no_tier(
    server_without_echo: LiveServer, model: str
) -> None:
    body = body_for(RESPONSES, model, service_tier="flex", echo={"ttft_ms": -1})
    response = server_without_echo.post(RESPONSES, body)
    assert response.status_code == 200, response.text
    assert "service_tier" not in response.text


def test_without_echo_extras_in_the_completions_flag_are_a_400(
    server_without_echo: LiveServer, model: str
) -> None:
    body = body_for(COMPLETIONS, model, echo={"ttft_ms": 900})
    assert "echo" in refusal_of(server_without_echo.post(COMPLETIONS, body))["message"]
