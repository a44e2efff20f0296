"""The table of docs/security.md on grammars, row by row: what is refused and what is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from echo_sglang.domain.grammar_limits import GrammarKind, GrammarLimits, fault_of_grammar

LIMITS = GrammarLimits(text_bytes=10_000)
REGEX, EBNF = GrammarKind.REGEX, GrammarKind.EBNF
SCHEMA, TAG = GrammarKind.JSON_SCHEMA, GrammarKind.STRUCTURAL_TAG
MUTUAL = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
TREE = {"properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}


@pytest.mark.parametrize(
    ("kind", "grammar", "said"),
    [
        (REGEX, "a" * 10_001, "10001 bytes"),
        (SCHEMA, {"enum": ["a" * 10_001]}, "10000 bytes"),
        (SCHEMA, '{"a":' * 66 + "1" + "}" * 66, "levels of JSON"),
        (SCHEMA, "[" * 4_000 + "]" * 4_000, "too deep|levels of JSON"),
        (SCHEMA, '{"type": ', "is not JSON"),
        (SCHEMA, {"$ref": "#"}, "leads only to itself"),
        (SCHEMA, {"$defs": MUTUAL, "$ref": "#/$defs/a"}, "leads only to itself"),
        (SCHEMA, {"anyOf": [{"$ref": "#/$defs/a"}] * 257}, "refs; at most 256"),
        (SCHEMA, {"enum": [0] * 4_097}, "choices"),
        (SCHEMA, {"type": "string", "maxLength": 10**12}, "maxLength is 1000000000000"),
        (SCHEMA, {"maxItems": 1_000, "items": {"maxItems": 1_000}}, "counts are unrolled"),
        (SCHEMA, {"pattern": "(a{1,1000}){1,1000}"}, "counts are unrolled"),
        (SCHEMA, {"patternProperties": {"a{99999}": {}}}, "counts are unrolled"),
        (SCHEMA, '{"pattern": "a\\u0000"}', "NUL"),
        (SCHEMA, {"a\0": 1}, "NUL"),
        (REGEX, "a\0", "NUL"),
        (REGEX, "[a-z]{1,100000}", "counts are unrolled"),
        (REGEX, "((a{1,99}){1,99}){1,99}", "counts are unrolled"),
        (REGEX, "a{" + "9" * 5_000 + "}", "counts are unrolled"),
        (REGEX, "(" * 65 + "a" + ")" * 65, "groups within each other"),
        (EBNF, 'root ::= r{1,999}\nr ::= s{999}\ns ::= "a"', "counts are unrolled"),
        (EBNF, 's ::= "a"\nr ::= s{999}\nroot ::= (r "x"){1,999}', "counts are unrolled"),
        (TAG, {"format": {"type": "regex", "pattern": "(a{999}){999}"}}, "counts are unrolled"),
        (TAG, {"format": {"type": "grammar", "grammar": 'root ::= "a"{99999}'}}, "unrolled"),
        (REGEX, "(a*)*b", "ever more readings"),
        (REGEX, "((a+)+)+b", "ever more readings"),
        (REGEX, "((a|a)*|(b|b)*)*c", "ever more readings"),
        (REGEX, "(?:[a-z]+ ?)+[.]", "ever more readings"),
        (REGEX, "([a-z]+,?)*", "ever more readings"),
        (REGEX, "(a?b?)*c", "ever more readings"),
        (REGEX, "(a|)*b", "ever more readings"),
        (REGEX, "(a{2,}){3,}", "ever more readings"),
        (EBNF, 'root ::= ("a"* )* "b"', "ever more readings"),
        (SCHEMA, {"pattern": "^(a*)*$"}, "ever more readings"),
        (REGEX, 5, "is int, allowed is text"),
    ],
)
def test_a_bomb_is_named_with_what_is_allowed(kind: GrammarKind, grammar: Any, said: str) -> None:
    fault = fault_of_grammar(kind, grammar, LIMITS)
    assert fault is not None
    assert any(part in fault for part in said.split("|")), fault


@pytest.mark.parametrize(
    ("kind", "grammar"),
    [
        (REGEX, r"\d{3}-\d{4}|(foo|bar)+[\]{]{2}"),
        (REGEX, r"[({]{2}\({1,9}"),
        (REGEX, "[a-z]+( [a-z]+)*[.]?"),
        (REGEX, "([a-z]+,)*(b|c)+(a|a)*d*?"),
        (REGEX, "([a-z]+[0-9]+)*|(a*b)*|(a*)?|(a*){0,3}|()"),
        (REGEX, "[(a*)*]+"),
        (EBNF, 'root ::= (ws item)*\nws ::= [ ]*\nitem ::= "(a*)*"'),
        (SCHEMA, {"$defs": {"tree": TREE}, "$ref": "#/$defs/tree"}),
        (SCHEMA, json.dumps({"properties": {f"p{n}": {"type": "string"} for n in range(200)}})),
        (SCHEMA, {"type": "string", "maxLength": 2_000}),
        (SCHEMA, "$$ANY$$"),
        (EBNF, 'root ::= value # "{99999}\nvalue ::= "[" value{0,9} "]" | "{99999}"'),
        (EBNF, "\n".join(f"r{n} ::= [0-9]{{1,64}}" for n in range(20))),
        (TAG, {"format": {"type": "json_schema", "json_schema": TREE}}),
    ],
)
def test_what_people_write_is_taken(kind: GrammarKind, grammar: Any) -> None:
    assert fault_of_grammar(kind, grammar, LIMITS) is None
