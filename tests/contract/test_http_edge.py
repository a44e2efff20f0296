"""The seams of the HTTP edge exist in the installed, patched SGLang and mean what Echo thinks."""

from __future__ import annotations

import asyncio
import inspect
import pkgutil
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    CompletionResponse,
    ResponsesRequest,
    ResponsesResponse,
    UsageInfo,
)
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.sampling.sampling_params import TOP_K_ALL, SamplingParams

from echo_sglang.adapter import http_edge
from echo_sglang.domain.tag import ONLINE_TIERS, parse_tag

EXTRAS = {"ttft_ms": 250}
OFFLINE_WITH_TTFT = {"class": "offline", "ttft_ms": 250.0}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
VOCABULARY_TOKENS = 1_000

LEADING_PARAMETERS = {
    "handle_request": ["self", "request", "raw_request"],
    "create_responses": ["self", "request", "raw_request"],
    "to_sampling_params": ["self"],
    "from_request": ["request", "sampling_params"],
    "serve_generate_request": ["obj", "request"],
    "generate_request": ["self", "obj", "request"],
    "_send_one_request": ["self", "tokenized_obj"],
}


@pytest.mark.parametrize("hook", http_edge.HOOKS, ids=lambda hook: hook.target)
def test_a_hooked_function_takes_what_its_hook_expects(hook: http_edge.EdgeHook) -> None:
    name = hook.target.rsplit(".", 1)[1]
    parameters = list(inspect.signature(pkgutil.resolve_name(hook.target)).parameters)
    expected = LEADING_PARAMETERS[name]
    assert parameters[: len(expected)] == expected


def test_generate_request_is_an_async_generator_so_it_can_be_closed() -> None:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    assert inspect.isasyncgenfunction(TokenizerManager.generate_request)


@pytest.mark.parametrize(
    "request_type_and_body",
    [
        (CompletionRequest, {"prompt": "Hi"}),
        (ChatCompletionRequest, CHAT),
        (ResponsesRequest, {"input": "Hi"}),
        (GenerateReqInput, {"text": "Hi"}),
    ],
    ids=lambda pair: pair[0].__name__,
)
def test_every_request_model_keeps_tier_and_extras(request_type_and_body: Any) -> None:
    request_type, body = request_type_and_body
    request = request_type(**body, service_tier="flex", echo=EXTRAS)
    assert request.service_tier == "flex"
    assert request.echo == EXTRAS


@pytest.mark.parametrize("tier", sorted(ONLINE_TIERS))
def test_responses_admits_every_online_tier(tier: str) -> None:
    request = ResponsesRequest(input="Hi", service_tier=tier)
    assert parse_tag(request.service_tier, None, now_unix_s=0).service_tier == "default"


def test_the_echo_flag_of_completions_is_still_a_flag() -> None:
    assert CompletionRequest(prompt="Hi", echo=True).echo is True
    assert CompletionRequest(prompt="Hi").echo is False


@pytest.mark.parametrize("response_type", [CompletionResponse, ChatCompletionResponse])
def test_an_answer_names_the_tier_only_when_one_was_settled(response_type: Any) -> None:
    answer = response_type(id="a", model="m", choices=[], usage=UsageInfo())
    assert "service_tier" not in answer.model_dump()
    answer.service_tier = "flex"
    assert '"service_tier":"flex"' in answer.model_dump_json()


def test_a_response_object_names_the_tier_only_when_one_was_settled() -> None:
    response = ResponsesResponse(model="m", status="completed")
    assert "service_tier" not in response.model_dump()
    response.service_tier = "flex"
    assert response.model_dump()["service_tier"] == "flex"


def test_a_completion_with_untaken_extras_is_refused_as_in_stock() -> None:
    from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion

    request = CompletionRequest(prompt="Hi", echo=EXTRAS)
    assert OpenAIServingCompletion._validate_request(None, request) == "echo must be a boolean"


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"stop_token_ids": {VOCABULARY_TOKENS}}, "stop_token_ids"),
        ({"stop_token_ids": {-1}}, "stop_token_ids"),
        ({"logit_bias": {str(VOCABULARY_TOKENS): 1.0}}, "logit_bias"),
        ({"top_k": TOP_K_ALL + 1}, "top_k"),
    ],
)
def test_sampling_params_refuse_what_the_scheduler_cannot_take(
    params: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        SamplingParams(**params).verify(VOCABULARY_TOKENS)


def test_sampling_params_take_the_last_token_of_the_vocabulary() -> None:
    SamplingParams(stop_token_ids={0, VOCABULARY_TOKENS - 1}).verify(VOCABULARY_TOKENS)


@pytest.mark.parametrize("n", [0, 5_000_000])
def test_the_number_of_samples_is_bounded(n: int) -> None:
    request = GenerateReqInput(text="Hi", sampling_params={"n": n})
    with pytest.raises(ValueError, match=r"n must be in \[1, 4096\]"):
        request.normalize_batch_and_arguments()


def test_install_registers_every_hook_once_in_the_main_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registered: list[str] = []
    monkeypatch.setattr(
        HookRegistry, "register", lambda target, function, hook_type: registered.append(target)
    )
    http_edge.install()
    assert registered == [hook.target for hook in http_edge.HOOKS]


def refuse(message: str, param: str) -> tuple[str, str]:
    return (param, message)


SERVING = SimpleNamespace(create_error_response=refuse)


async def hand_over(_: Any, request: Any, __: Any) -> Any:
    return SimpleNamespace(request=request, service_tier=None)


@pytest.mark.parametrize(
    "request_type_and_body",
    [(CompletionRequest, {"prompt": "Hi"}), (ChatCompletionRequest, CHAT)],
    ids=lambda pair: pair[0].__name__,
)
def test_the_tag_travels_beside_the_clients_own_custom_params(request_type_and_body: Any) -> None:
    request_type, body = request_type_and_body
    request = request_type(**body, service_tier="flex", echo=EXTRAS, custom_params={"mine": 1})
    answer = asyncio.run(http_edge.admit_openai_request(hand_over, SERVING, request, None))
    assert answer.service_tier == "flex"
    assert answer.request.custom_params == {"mine": 1, "echo": OFFLINE_WITH_TTFT}
    assert answer.request.echo is False


def test_a_request_that_says_nothing_carries_nothing() -> None:
    request = CompletionRequest(prompt="Hi", echo=True)
    answer = asyncio.run(http_edge.admit_openai_request(hand_over, SERVING, request, None))
    assert answer.service_tier == "default"
    assert answer.request.custom_params is None
    assert answer.request.echo is True


def test_a_bad_request_never_reaches_the_handler() -> None:
    request = CompletionRequest(prompt="Hi", echo={"ttft_ms": -1})
    answer = asyncio.run(http_edge.admit_openai_request(hand_over, SERVING, request, None))
    assert answer[0] == "echo.ttft_ms"


def test_the_tag_of_a_response_is_in_its_sampling_params() -> None:
    request = ResponsesRequest(input="Hi", service_tier="flex", echo=EXTRAS)
    answer = asyncio.run(http_edge.admit_responses_request(hand_over, SERVING, request, None))
    params = {"temperature": 0.5, "custom_params": {"mine": 1}}
    http_edge.tag_responses_sampling(params, answer.request)
    assert params["custom_params"] == {"mine": 1, "echo": OFFLINE_WITH_TTFT}


@pytest.mark.parametrize("given", [None, {"n": 2}, [{"n": 2}, {"custom_params": {"mine": 1}}]])
def test_every_sampling_params_of_generate_carries_the_tag(given: Any) -> None:
    async def serve(obj: Any, _: Any) -> Any:
        return obj

    request = GenerateReqInput(
        text=["a", "b"], sampling_params=given, service_tier="flex", echo=EXTRAS
    )
    admitted = asyncio.run(http_edge.admit_generate_request(serve, request, None))
    params = admitted.sampling_params
    tagged = params if isinstance(params, list) else [params]
    assert len(tagged) == (len(given) if isinstance(given, list) else 1)
    assert [item["custom_params"]["echo"] for item in tagged] == [OFFLINE_WITH_TTFT] * len(tagged)
    assert all("echo" not in (item.get("custom_params") or {}) for item in as_list(given))


def as_list(given: Any) -> list[dict[str, Any]]:
    """The sampling parameters the client sent, which must not be changed in place."""
    return given if isinstance(given, list) else [given or {}]


def test_closing_a_named_stream_closes_sglangs_own_generator() -> None:
    closed: list[bool] = []

    async def generate(_: Any, __: Any, ___: Any) -> Any:
        try:
            while True:
                yield {"meta_info": {}}
        finally:
            closed.append(True)

    async def read_one_and_close() -> dict[str, Any]:
        request = SimpleNamespace(service_tier=("flex",), parallel_sample_num=1)
        answers: Any = http_edge.name_generate_tier(generate, None, request)
        first: dict[str, Any] = await anext(answers)
        await answers.aclose()
        return first

    assert asyncio.run(read_one_and_close()) == {"meta_info": {"service_tier": "flex"}}
    assert closed == [True]
