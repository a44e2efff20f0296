"""Echo at the HTTP edge: reads a request's tag, and names the tier used in its answer.

Everything here is a hook on a named SGLang function, registered in the HTTP process only.
Where a tag comes from, and where the answer names the tier:

    endpoint              read from                         answered in
    /v1/completions       service_tier, echo (an object)    service_tier, every stream chunk
    /v1/chat/completions  service_tier, echo                service_tier, every stream chunk
    /v1/responses         service_tier, echo                service_tier of each response object
    /generate             service_tier, echo                meta_info.service_tier

A ready-made tag in `custom_params.echo` is taken too, where the endpoint has custom_params.
All of them hand the tag to the scheduler as `sampling_params.custom_params["echo"]`; a request
that says nothing carries nothing, which means online.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from echo_sglang.adapter import turnstile
from echo_sglang.adapter.grammars import (
    check_grammars,
    grammars_of_openai,
    grammars_of_sampling,
    refuse_grammar_bombs,
)
from echo_sglang.adapter.turnstile import answers_in_turn, turn_if
from echo_sglang.domain.tag import (
    CUSTOM_PARAMS_KEY,
    OFFLINE_TIERS,
    RequestTag,
    ServiceClass,
    resolve_tag,
)
from echo_sglang.errors import RequestError

HTTP_SERVER = "sglang.srt.entrypoints.http_server"
_OPENAI = "sglang.srt.entrypoints.openai"
_SSE_OBJECT = 'data: {"'


class EdgeHook(NamedTuple):
    """One hook: the SGLang function, what wraps it, and how."""

    target: str
    function: Callable[..., Any]
    hook_type: HookType


def install(*further: EdgeHook) -> None:
    """Register the edge hooks and `further` if this process serves HTTP; else do nothing.

    SGLang loads plugins in every process. Only the main process, or one that has the HTTP
    server loaded, takes requests; the others would import the whole HTTP stack for nothing.
    """
    if multiprocessing.parent_process() is not None and HTTP_SERVER not in sys.modules:
        return
    for hook in (*HOOKS, *further):
        HookRegistry.register(hook.target, hook.function, hook.hook_type)


async def admit_openai_request(
    handle: Callable[..., Any], serving: Any, request: Any, raw_request: Any
) -> Any:
    """Around `OpenAIServingBase.handle_request`: chat and completions."""
    if not hasattr(request, "service_tier"):
        return await handle(serving, request, raw_request)
    extras = _take_extras(request)
    try:
        refuse_grammar_bombs(grammars_of_openai(request))
        tag = resolve_tag(
            request.service_tier, extras, request.custom_params, now_unix_s=time.time()
        )
    except RequestError as error:
        return serving.create_error_response(str(error), param=error.field)
    if tag != RequestTag():
        request.custom_params = _with_tag(request.custom_params, tag)
    async with turn_if(_is_offline(tag)):
        answer = await handle(serving, request, raw_request)
    if hasattr(answer, "body_iterator"):
        answer.body_iterator = _name_tier(answer.body_iterator, tag.service_tier)
    elif hasattr(answer, "service_tier"):
        answer.service_tier = tag.service_tier
    return answer


async def admit_responses_request(
    create: Callable[..., Any], serving: Any, request: Any, raw_request: Any = None
) -> Any:
    """Around `OpenAIServingResponses.create_responses`: leaves the tag in `request.echo`."""
    extras = None if isinstance(request.echo, bool) else request.echo
    try:
        refuse_grammar_bombs(grammars_of_openai(request))
        request.echo = resolve_tag(request.service_tier, extras, None, now_unix_s=time.time())
    except RequestError as error:
        return serving.create_error_response(str(error), param=error.field)
    async with turn_if(_is_offline(request.echo)):
        return await create(serving, request, raw_request)


def tag_responses_sampling(params: dict[str, Any], request: Any, *_: Any, **__: Any) -> None:
    """After `ResponsesRequest.to_sampling_params`: adds the tag to the fresh parameters."""
    tag = request.echo
    if isinstance(tag, RequestTag) and tag != RequestTag():
        params["custom_params"] = _with_tag(params.get("custom_params"), tag)


def name_responses_tier(response: Any, _: type, request: Any, *__: Any, **___: Any) -> None:
    """After `ResponsesResponse.from_request`: names the tier in the response object."""
    if isinstance(request.echo, RequestTag):
        response.service_tier = request.echo.service_tier


async def admit_generate_request(serve: Callable[..., Any], obj: Any, request: Any) -> Any:
    """Around `serve_generate_request`: tags each item of the batch.

    Leaves in `obj.service_tier` the tiers to answer, one per sampling parameters given.
    """
    extras = None if isinstance(obj.echo, bool) else obj.echo
    several = isinstance(obj.sampling_params, list)
    given = obj.sampling_params if several else [obj.sampling_params]
    now_unix_s = time.time()
    tagged: list[dict[str, Any]] = []
    tiers: list[str] = []
    try:
        for params in (dict(item or {}) for item in given):
            refuse_grammar_bombs(grammars_of_sampling(params, "sampling_params."))
            custom_params = params.get("custom_params")
            if custom_params is not None and not isinstance(custom_params, Mapping):
                raise RequestError("sampling_params.custom_params", "expected an object")
            tag = resolve_tag(obj.service_tier, extras, custom_params, now_unix_s=now_unix_s)
            if tag != RequestTag():
                params["custom_params"] = _with_tag(custom_params, tag)
            tagged.append(params)
            tiers.append(tag.service_tier)
    except RequestError as error:
        return _generate_error(error)
    obj.sampling_params = tagged if several else tagged[0]
    obj.service_tier = tuple(tiers)
    return await serve(obj, request)


def name_generate_tier(
    generate: Callable[..., Any], manager: Any, obj: Any, request: Any = None
) -> AsyncIterator[Any]:
    """Around `TokenizerManager.generate_request`: names the tiers `/generate` has settled."""
    answers: AsyncIterator[Any] = generate(manager, obj, request)
    tiers = getattr(obj, "service_tier", None)
    if not isinstance(tiers, tuple):
        return answers
    offline = not OFFLINE_TIERS.isdisjoint(tiers)
    return _with_tiers(answers_in_turn(answers) if offline else answers, obj)


async def _with_tiers(answers: AsyncIterator[Any], obj: Any) -> AsyncIterator[Any]:
    tiers: tuple[str, ...] = obj.service_tier
    try:
        async for answer in answers:
            several = isinstance(answer, list)
            for position, item in enumerate(answer if several else [answer]):
                # Samples of one prompt are neighbours: prompt = index // samples.
                index = position if several else item.get("index", 0)
                prompt = index // max(obj.parallel_sample_num, 1)
                item["meta_info"]["service_tier"] = tiers[prompt if len(tiers) > 1 else 0]
            yield answer
    finally:
        # SGLang aborts what is unfinished when its own generator is closed.
        await answers.aclose()  # type: ignore[attr-defined]


async def _name_tier(chunks: AsyncIterator[Any], service_tier: str) -> AsyncIterator[Any]:
    """Put `service_tier` first in the JSON object of every server-sent event."""
    named = f'data: {{"service_tier":"{service_tier}","'
    async for chunk in chunks:
        if isinstance(chunk, str) and chunk.startswith(_SSE_OBJECT):
            chunk = named + chunk[len(_SSE_OBJECT) :]
        yield chunk


def _take_extras(request: Any) -> object:
    """The `echo` extras of a chat or completion request; completions' own flag stays a bool."""
    extras = request.echo
    if isinstance(extras, bool):
        return None
    request.echo = False
    return extras


def _with_tag(custom_params: Mapping[str, Any] | None, tag: RequestTag) -> dict[str, Any]:
    return {**(custom_params or {}), CUSTOM_PARAMS_KEY: tag.to_custom_params()}


def _is_offline(tag: RequestTag) -> bool:
    return tag.service_class is ServiceClass.OFFLINE


def _generate_error(error: RequestError) -> Any:
    from sglang.srt.entrypoints.http_server import _create_error_response

    return _create_error_response(error)


HOOKS = (
    EdgeHook(
        f"{_OPENAI}.serving_base.OpenAIServingBase.handle_request",
        admit_openai_request,
        HookType.AROUND,
    ),
    EdgeHook(
        f"{_OPENAI}.serving_responses.OpenAIServingResponses.create_responses",
        admit_responses_request,
        HookType.AROUND,
    ),
    EdgeHook(
        f"{_OPENAI}.protocol.ResponsesRequest.to_sampling_params",
        tag_responses_sampling,
        HookType.AFTER,
    ),
    EdgeHook(
        f"{_OPENAI}.protocol.ResponsesResponse.from_request",
        name_responses_tier,
        HookType.AFTER,
    ),
    EdgeHook(f"{HTTP_SERVER}.serve_generate_request", admit_generate_request, HookType.AROUND),
    EdgeHook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        name_generate_tier,
        HookType.AROUND,
    ),
    EdgeHook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        check_grammars,
        HookType.BEFORE,
    ),
    EdgeHook(turnstile.SEND, turnstile.end_turn, HookType.AROUND),
)
