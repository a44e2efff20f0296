"""Requests that end a stock server are answered with 400, and the server goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.live_server import LiveServer

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GENERATE = "/generate"
RESPONSES = "/v1/responses"

TOO_LARGE = 9_999_999


def chat(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    return {"model": "any", "messages": messages, "max_tokens": 4, **fields}


def completion(prompt: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "any", "prompt": prompt, "max_tokens": 2, **fields}


def generate(params: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    source = {} if "text" in fields or "input_ids" in fields else {"text": "Hello"}
    return {**source, "sampling_params": {"max_new_tokens": 2, **(params or {})}, **fields}


# Each row: endpoint, body, and what the message must contain.
KILLERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "top logprobs beyond the vocabulary": (
        CHAT, chat(logprobs=True, top_logprobs=1_000_000), "top_logprobs"
    ),
    "negative top logprobs": (CHAT, chat(logprobs=True, top_logprobs=-1), "top_logprobs"),
    "logprobs of a completion": (COMPLETIONS, completion("a", logprobs=1_000_000), "logprobs"),
    "top logprobs of generate": (
        GENERATE, generate(return_logprob=True, top_logprobs_num=1_000_000), "top_logprobs_num"
    ),
    "top logprobs of one item of a batch": (
        GENERATE,
        generate(text=["a", "b"], return_logprob=True, top_logprobs_num=[1, 1_000_000]),
        "top_logprobs_num",
    ),
    "stop token beyond the vocabulary": (
        CHAT, chat(stop_token_ids=[TOO_LARGE], min_tokens=2), "stop_token_ids"
    ),
    "negative stop token": (CHAT, chat(stop_token_ids=[-1], min_tokens=2), "stop_token_ids"),
    "stop token while sampling twice": (
        CHAT, chat(stop_token_ids=[TOO_LARGE], min_tokens=2, n=2), "stop_token_ids"
    ),
    "stop token of a completion": (
        COMPLETIONS, completion("a", stop_token_ids=[TOO_LARGE], min_tokens=1), "stop_token_ids"
    ),
    "stop token in sampling_params": (
        GENERATE, generate({"stop_token_ids": [TOO_LARGE], "min_new_tokens": 2}), "stop_token_ids"
    ),
    "negative prompt token": (GENERATE, generate(input_ids=[-1]), "input_ids"),
    "negative prompt token in a batch": (GENERATE, generate(input_ids=[[1], [-1]]), "input_ids"),
    "prompt token of a chat": (CHAT, chat(input_ids=[TOO_LARGE]), "input_ids"),
    "prompt token of a completion": (COMPLETIONS, completion([10_000_000]), "[0, "),
    "prompt token in a completion batch": (COMPLETIONS, completion([[1], [10_000_000]]), "[0, "),
    "empty text": (GENERATE, generate(text=""), "empty"),
    "empty text in a batch": (GENERATE, generate(text=["a", ""]), "empty"),
    "empty text in a sampled batch": (GENERATE, generate({"n": 2}, text=["a", ""]), "empty"),
    "empty ids in a batch": (GENERATE, generate(input_ids=[[1], []]), "empty"),
    "empty prompt in a completion batch": (COMPLETIONS, completion(["a", ""]), "empty"),
    "logprob of a token that is none": (
        GENERATE, generate(return_logprob=True, token_ids_logprob=[TOO_LARGE]), "token_ids_logprob"
    ),
    "logit bias of a token that is none": (
        GENERATE, generate({"logit_bias": {str(TOO_LARGE): 1}}), "logit_bias"
    ),
    "negative logit bias key": (CHAT, chat(logit_bias={"-3": 1}), "logit_bias"),
    "top_k beyond int32": (GENERATE, generate({"top_k": 2**31 + 5}), "top_k"),
    "top_k of a chat beyond int32": (CHAT, chat(top_k=2**40), "top_k"),
    "embedding overrides in JSON": (
        GENERATE, generate(positional_embed_overrides={"a": 1}), "positional_embed_overrides"
    ),
    "millions of samples": (COMPLETIONS, completion("a", n=5_000_000), "4096"),
    "millions of samples in sampling_params": (GENERATE, generate({"n": 5_000_000}), "4096"),
}  # fmt: skip


def assert_still_answers(server: LiveServer) -> None:
    response = server.post(GENERATE, generate(text="Hello"))
    assert response.status_code == 200, server.log_tail()
    assert response.json()["meta_info"]["completion_tokens"] == 2


@pytest.mark.parametrize("name", KILLERS)
def test_a_killer_is_a_400_that_says_why_and_the_server_goes_on(
    server: LiveServer, name: str
) -> None:
    path, body, said = KILLERS[name]
    response = server.post(path, body)
    assert response.status_code == 400, response.text
    error = response.json().get("error", response.json())
    assert said in error["message"]
    assert_still_answers(server)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(logprobs=True, top_logprobs=1_000_000)),
        (COMPLETIONS, completion([-1])),
    ],
)
def test_a_streaming_killer_is_a_400_before_the_stream(
    server: LiveServer, path: str, body: dict[str, Any]
) -> None:
    assert server.post(path, {**body, "stream": True}).status_code == 400
    assert_still_answers(server)


def test_a_streaming_killer_of_generate_is_an_error_event_as_generate_does(
    server: LiveServer,
) -> None:
    events = server.stream(GENERATE, generate(text=""))
    assert [event["error"]["code"] for event in events] == [400]
    assert_still_answers(server)


def test_a_neighbour_in_flight_finishes_beside_a_killer(server: LiveServer) -> None:
    body = generate({"max_new_tokens": 24, "ignore_eos": True}, text="Once upon a time")
    killed = False
    seen = 0
    for event in server.iterate(GENERATE, body):
        seen = event["meta_info"]["completion_tokens"]
        if not killed:
            killed = server.post(GENERATE, generate(input_ids=[-1])).status_code == 400
    assert killed
    assert seen == 24


def test_the_widest_values_that_are_allowed_are_served(server: LiveServer) -> None:
    model = server.get("/v1/models").json()["data"][0]["id"]
    edge_ids = generate({"stop_token_ids": [0, 1], "min_new_tokens": 2}, input_ids=[0, 1])
    assert server.post(GENERATE, edge_ids).status_code == 200
    response = server.post(RESPONSES, {"model": model, "input": "Hi", "max_output_tokens": 8})
    assert response.status_code == 200
