"""Grammars that a request brings: refused with 400 if they are bombs.

Read in the HTTP process, before anything is compiled. A field of the endpoint is named in the
400; what reaches SGLang another way (tools, other endpoints) is read once more as the sampling
parameters that it became.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from echo_sglang.config import CONFIG_ENV, EchoConfig
from echo_sglang.domain.grammar_limits import GrammarKind, GrammarLimits, fault_of_grammar
from echo_sglang.errors import RequestError

KILOBYTE = 1_000

Found = tuple[str, GrammarKind, Any]
"""Name of a request's field, how the grammar in it is written, and the grammar."""


def grammar_limits() -> GrammarLimits:
    """What the launcher put into the environment."""
    config = EchoConfig.from_json(os.environ[CONFIG_ENV])
    return GrammarLimits(text_bytes=int(config.max_grammar_kb * KILOBYTE))


def refuse_grammar_bombs(found: Iterator[Found]) -> None:
    """Raise RequestError naming the first field whose grammar is more than is allowed."""
    limits: GrammarLimits | None = None
    for name, kind, grammar in found:
        limits = limits or grammar_limits()
        fault = fault_of_grammar(kind, grammar, limits)
        if fault is not None:
            raise RequestError(name, fault)


def grammars_of_sampling(params: Any, prefix: str = "") -> Iterator[Found]:
    """Of /generate's sampling_params, and of requests that have such fields themselves."""
    for kind in GrammarKind:
        given = params.get(kind) if isinstance(params, Mapping) else getattr(params, kind, None)
        if given:
            yield f"{prefix}{kind.value}", kind, given


def grammars_of_openai(request: Any) -> Iterator[Found]:
    """Of a chat completion, completion or response."""
    yield from grammars_of_sampling(request)
    wanted = getattr(request, "response_format", None)
    if wanted is not None and wanted.type == "structural_tag":
        yield "response_format", GrammarKind.STRUCTURAL_TAG, wanted.model_dump(by_alias=True)
    elif wanted is not None:
        schema = getattr(getattr(wanted, "json_schema", None), "schema_", None)
        yield from _schema("response_format.json_schema.schema", schema)
    text_format = getattr(getattr(request, "text", None), "format", None)
    yield from _schema("text.format.schema", getattr(text_format, "schema_", None))
    for number, tool in enumerate(getattr(request, "tools", None) or ()):
        function = getattr(tool, "function", tool)
        schema = getattr(function, "parameters", None)
        yield from _schema(f"tools[{number}].function.parameters", schema)


def _schema(name: str, schema: Any) -> Iterator[Found]:
    if schema is not None and not isinstance(schema, bool):
        yield name, GrammarKind.JSON_SCHEMA, schema


def check_grammars(_: Any, obj: Any, *__: Any, **___: Any) -> None:
    """Before `TokenizerManager.generate_request`, which every endpoint comes to.

    Raises ValueError, which SGLang answers with 400.
    """
    given = getattr(obj, "sampling_params", None)
    try:
        for params in given if isinstance(given, list) else [given]:
            refuse_grammar_bombs(grammars_of_sampling(params or {}, "sampling_params."))
    except RequestError as error:
        raise ValueError(str(error)) from error
