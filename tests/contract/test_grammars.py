"""Where grammars stand in SGLang's requests, and how long its grammar manager waits."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    ResponsesRequest,
)
from sglang.srt.managers.io_struct import GenerateReqInput

from echo_sglang.adapter.grammar_manager import BoundedGrammarManager
from echo_sglang.adapter.grammars import check_grammars, grammars_of_openai, refuse_grammar_bombs
from echo_sglang.adapter.http_edge import admit_openai_request
from echo_sglang.config import CONFIG_ENV, EchoConfig
from echo_sglang.errors import RequestError

BOMB = "(a{1,1000}){1,1000}"
SCHEMA = {"type": "string", "pattern": BOMB}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
TAGS = {
    "type": "structural_tag",
    "structures": [{"begin": "<a>", "schema": SCHEMA, "end": "</a>"}],
    "triggers": ["<a>"],
}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "Hi"}
FUNCTION = {"name": "f", "parameters": SCHEMA}
TEXT_FORMAT = {"type": "json_schema", "name": "n", "schema": SCHEMA}


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_ENV, EchoConfig().to_json())


@pytest.mark.parametrize(
    ("request_type", "body", "named"),
    [
        (ChatCompletionRequest, {**CHAT, "regex": BOMB}, "regex"),
        (ChatCompletionRequest, {**CHAT, "ebnf": 'root ::= "a"{99999}'}, "ebnf"),
        (
            ChatCompletionRequest,
            {**CHAT, "response_format": FORMAT},
            "response_format.json_schema.schema",
        ),
        (ChatCompletionRequest, {**CHAT, "response_format": TAGS}, "response_format"),
        (
            ChatCompletionRequest,
            {**CHAT, "tools": [{"type": "function", "function": FUNCTION}]},
            "tools[0].function.parameters",
        ),
        (CompletionRequest, {**TEXT, "json_schema": '{"pattern": "a{99999}"}'}, "json_schema"),
        (
            CompletionRequest,
            {**TEXT, "response_format": FORMAT},
            "response_format.json_schema.schema",
        ),
        (ResponsesRequest, {"input": "Hi", "text": {"format": TEXT_FORMAT}}, "text.format.schema"),
    ],
)
def test_the_400_names_the_field(request_type: Any, body: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError) as refused:
        refuse_grammar_bombs(grammars_of_openai(request_type(**body)))
    assert refused.value.field == named


def test_openais_endpoints_are_told_the_param_before_anything_is_converted() -> None:
    def refuse(message: str, param: str) -> tuple[str, str]:
        return message, param

    serving = SimpleNamespace(create_error_response=refuse)
    request = ChatCompletionRequest(**CHAT, regex=BOMB)
    message, param = asyncio.run(admit_openai_request(None, serving, request, None))  # type: ignore[arg-type]
    assert param == "regex" and "at most 10000" in message


def test_what_comes_another_way_is_a_value_error() -> None:
    for params in ({"regex": BOMB}, [{}, {"regex": BOMB}]):
        obj = GenerateReqInput(text="Hi", sampling_params=params)
        with pytest.raises(ValueError, match=r"sampling_params\.regex"):
            check_grammars(None, obj)
    check_grammars(None, GenerateReqInput(text="Hi", sampling_params={"regex": "a+"}))


def test_a_grammar_that_compiles_too_long_is_given_up_in_seconds() -> None:
    manager = BoundedGrammarManager.__new__(BoundedGrammarManager)
    now_s = [100.0]
    cached: dict[Any, Any] = {}
    manager.scheduler = SimpleNamespace(echo_clock=lambda: now_s[0])
    manager.grammar_backend = SimpleNamespace(set_cache=cached.__setitem__)
    manager.grammar_sync_size, manager.pp_rank, manager.pp_size = 1, 0, 1
    manager.bound(most_s=5.0)
    said: list[str] = []
    req = SimpleNamespace(
        rid="r",
        grammar=Future(),
        grammar_key=("regex", "a"),
        grammar_wait_ct=0,
        finished=lambda: False,
        set_finish_with_abort=said.append,
    )
    manager.grammar_queue = [req]
    for now_s[0] in (100.0, 104.9):
        assert manager.get_ready_grammar_requests() == []
    now_s[0] = 105.1
    assert manager.get_ready_grammar_requests() == [req]
    assert "timed out" in said[0] and ("regex", "a") in cached and not len(manager)
