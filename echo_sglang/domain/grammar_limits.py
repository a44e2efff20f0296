"""What a grammar may be at most, found by reading it once: no compiler, no recursion.

Grammar compilers unroll counts: `(a{1,1000}){1,1000}` is a million states written in 17
characters. So what is bounded here is not only the text but what it unrolls to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from echo_sglang.domain.grammar_text import fault_of_text, too_much


class GrammarKind(StrEnum):
    """How a grammar is written; the names are SGLang's sampling parameters."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    EBNF = "ebnf"
    STRUCTURAL_TAG = "structural_tag"


@dataclass(frozen=True)
class GrammarLimits:
    """text_bytes: of one grammar as UTF-8. The others bound what its text stands for."""

    text_bytes: int
    json_levels: int = 64
    json_refs: int = 256
    json_choices: int = 4_096
    json_count: int = 4_096
    group_levels: int = 64
    states: int = 10_000


_COUNT_KEYS = (
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
)
_CHOICE_KEYS = ("enum", "anyOf", "oneOf", "allOf")
_REMEMBERED = 128


def fault_of_grammar(kind: GrammarKind, grammar: Any, limits: GrammarLimits) -> str | None:
    """What `grammar` has and what is allowed, in words; None if it may be compiled.

    grammar: text, or of JSON_SCHEMA and STRUCTURAL_TAG also what the text stands for.
    The last texts are remembered: a request's is looked at in two places, a batch's in each line.
    """
    if isinstance(grammar, str) and len(grammar) <= limits.text_bytes:
        return _fault_of_remembered(kind, grammar, limits)
    return _fault_of(kind, grammar, limits)


@lru_cache(maxsize=_REMEMBERED)
def _fault_of_remembered(kind: GrammarKind, grammar: str, limits: GrammarLimits) -> str | None:
    return _fault_of(kind, grammar, limits)


def _fault_of(kind: GrammarKind, grammar: Any, limits: GrammarLimits) -> str | None:
    written = kind in (GrammarKind.REGEX, GrammarKind.EBNF)
    if isinstance(grammar, str):
        size = len(grammar.encode("utf-8", "surrogatepass"))
        if size > limits.text_bytes:
            return too_much(f"{size} bytes", f"{limits.text_bytes} (--echo-max-grammar-kb)")
        if written:
            return _fault_of_written(grammar, limits, ebnf=kind is GrammarKind.EBNF)
        if grammar == "$$ANY$$":
            return None
        try:
            grammar = json.loads(grammar)
        except (ValueError, RecursionError):
            return "is not JSON, or nested too deep to be read; send a JSON object"
    elif written:
        return f"is {type(grammar).__name__}, allowed is text"
    return _fault_of_json(grammar, limits)


def _fault_of_written(text: str, limits: GrammarLimits, *, ebnf: bool) -> str | None:
    return fault_of_text(
        text, ebnf=ebnf, most_group_levels=limits.group_levels, most_states=limits.states
    )


@dataclass
class _Tally:
    """What a JSON grammar has added up to so far."""

    text_bytes: int = 0
    refs: int = 0
    choices: int = 0


def _fault_of_json(root: Any, limits: GrammarLimits) -> str | None:
    tally = _Tally()
    for value, level, times in _walk(root):
        if level > limits.json_levels:
            return too_much("more levels of JSON", str(limits.json_levels))
        if isinstance(value, str):
            tally.text_bytes += len(value)
            if "\0" in value:
                return "the grammar has a NUL character, which is not allowed"
        elif isinstance(value, Mapping):
            fault = _fault_of_object(value, times, tally, limits)
            if fault is not None:
                return fault
        tally.text_bytes += 2
        if tally.text_bytes > limits.text_bytes:
            return too_much(
                f"more than {limits.text_bytes} bytes",
                f"{limits.text_bytes} (--echo-max-grammar-kb)",
            )
    return _fault_of_references(root)


def _walk(root: Any) -> Iterator[tuple[Any, int, int]]:
    """Every key and value, how deep it is, and how often the counts around it repeat it."""
    waiting = [(root, 0, 1)]
    while waiting:
        value, level, times = waiting.pop()
        yield value, level, times
        if isinstance(value, Mapping):
            inner = times * _unrolled(value, "minItems", "maxItems")
            waiting.extend((key, level, 1) for key in value)
            waiting.extend((item, level + 1, inner) for item in value.values())
        elif isinstance(value, (list, tuple)):
            waiting.extend((item, level + 1, times) for item in value)


def _unrolled(schema: Mapping[str, Any], *names: str) -> int:
    return max(1, *(int(_number(schema.get(name))) for name in names))


def _number(value: Any) -> float:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    return min(float(value), 1e18) if usable and value > 0 else 0.0


def _fault_of_object(
    value: Mapping[str, Any], times: int, tally: _Tally, limits: GrammarLimits
) -> str | None:
    for name in _COUNT_KEYS:
        if _number(value.get(name)) > limits.json_count:
            return f"{name} is {value[name]!r:.40}; at most {limits.json_count} is taken"
    tally.refs += isinstance(value.get("$ref"), str)
    if tally.refs > limits.json_refs:
        return too_much("more $refs", str(limits.json_refs))
    for name in _CHOICE_KEYS:
        listed = value.get(name)
        tally.choices += len(listed) if isinstance(listed, (list, tuple)) else 0
    if tally.choices > limits.json_choices:
        return too_much("more choices in enum, anyOf, oneOf and allOf", str(limits.json_choices))
    unrolled = times * _unrolled(value, "minItems", "maxItems")
    if unrolled > limits.states:
        return too_much("more items once its counts are unrolled", str(limits.states))
    return _fault_of_embedded(value, limits)


def _fault_of_embedded(value: Mapping[str, Any], limits: GrammarLimits) -> str | None:
    """Regexes and EBNF within JSON: of strings, of property names, of structural tags."""
    patterned = value.get("patternProperties")
    texts = [(text, False) for text in patterned or ()] if isinstance(patterned, Mapping) else []
    texts += [(value.get("pattern"), False), (value.get("grammar"), True)]
    for text, ebnf in texts:
        fault = _fault_of_written(text, limits, ebnf=ebnf) if isinstance(text, str) else None
        if fault is not None:
            return f"in {text[:40]!r}: {fault}"
    return None


def _fault_of_references(root: Any) -> str | None:
    """A $ref that leads to itself by $refs alone describes nothing and has no end."""
    if not isinstance(root, Mapping):
        return None
    for value, _, _ in _walk(root):
        seen: set[str] = set()
        while isinstance(value, Mapping) and isinstance(value.get("$ref"), str):
            pointer = value["$ref"]
            if pointer in seen or (pointer == "#" and "$ref" in root):
                return f"$ref {pointer[:80]!r} leads only to itself; let it lead to a schema"
            seen.add(pointer)
            value = _pointed_at(root, pointer)
    return None


def _pointed_at(root: Any, pointer: str) -> Any:
    if not pointer.startswith("#"):
        return None
    value = root
    for part in pointer[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
