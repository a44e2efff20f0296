"""What a grammar may be at most, found by reading it once: no compiler, no recursion.

Grammar compilers unroll counts: `(a{1,1000}){1,1000}` is a million states written in 17
characters. So what is bounded here is not only the text but what it unrolls to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any


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


_REPEAT = re.compile(r"\{\s*(\d*)\s*(,?)\s*(\d*)\s*\}")
_NAME = re.compile(r"([A-Za-z_][\w.-]*)(\s*::=)?")
_AMBIGUOUS = (
    "the grammar repeats without bound what may itself be empty or nothing but such a repeat, as "
    "in (a*)* or ([a-z]+ ?)+: a text has then ever more readings, and every token costs all "
    "requests more time; write a*, or [a-z]+( [a-z]+)*"
)
_PASSES = 4
"""Over EBNF: counts of rules that are repeated within rules are seen this many rules deep."""
_COUNT_KEYS = (
    *("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
)
_CHOICE_KEYS = ("enum", "anyOf", "oneOf", "allOf")
_ESCAPE = "\\"
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
            return _too_much(f"{size} bytes", f"{limits.text_bytes} (--echo-max-grammar-kb)")
        if written:
            return _fault_of_text(grammar, limits, ebnf=kind is GrammarKind.EBNF)
        if grammar == "$$ANY$$":
            return None
        try:
            grammar = json.loads(grammar)
        except (ValueError, RecursionError):
            return "is not JSON, or nested too deep to be read; send a JSON object"
    elif written:
        return f"is {type(grammar).__name__}, allowed is text"
    return _fault_of_json(grammar, limits)


def _too_much(given: str, allowed: str) -> str:
    return f"the grammar has {given}; at most {allowed} are taken"


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
            return _too_much("more levels of JSON", str(limits.json_levels))
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
            return _too_much(
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
        return _too_much("more $refs", str(limits.json_refs))
    for name in _CHOICE_KEYS:
        listed = value.get(name)
        tally.choices += len(listed) if isinstance(listed, (list, tuple)) else 0
    if tally.choices > limits.json_choices:
        return _too_much("more choices in enum, anyOf, oneOf and allOf", str(limits.json_choices))
    unrolled = times * _unrolled(value, "minItems", "maxItems")
    if unrolled > limits.states:
        return _too_much("more items once its counts are unrolled", str(limits.states))
    return _fault_of_embedded(value, limits)


def _fault_of_embedded(value: Mapping[str, Any], limits: GrammarLimits) -> str | None:
    """Regexes and EBNF within JSON: of strings, of property names, of structural tags."""
    patterned = value.get("patternProperties")
    texts = [(text, False) for text in patterned or ()] if isinstance(patterned, Mapping) else []
    texts += [(value.get("pattern"), False), (value.get("grammar"), True)]
    for text, ebnf in texts:
        fault = _fault_of_text(text, limits, ebnf=ebnf) if isinstance(text, str) else None
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


@dataclass(frozen=True)
class _Part:
    """may_be_run: it may be nothing but one thing repeated without bound."""

    may_be_empty: bool = False
    may_be_run: bool = False


_ONE = _Part()
_NOTHING = _Part(may_be_empty=True)


@dataclass
class _Group:
    """An open group: its states unrolled, and the largest product of counts within counts.

    last_states, last_nested, last: of the last thing in it, which a count repeats.
    needed, needed_runs, has_run: of the present alternative without that thing, how many parts
    must be there, how many of them may be runs, and whether any part may be. empty_before,
    run_before: whether an earlier alternative may be empty, or nothing but one run.
    """

    states: int = 0
    nested: int = 1
    last_states: int = 0
    last_nested: int = 1
    last: _Part = field(default_factory=lambda: _NOTHING)
    needed: int = 0
    needed_runs: int = 0
    has_run: bool = False
    empty_before: bool = False
    run_before: bool = False

    def add(self, states: int, nested: int = 1, part: _Part | None = None) -> None:
        self.states += states
        self.nested = max(self.nested, nested)
        self.last_states, self.last_nested = states, nested
        self._settle()
        self.last = part or _ONE

    def end_alternative(self) -> None:
        """At a | and at the group's end."""
        self._settle()
        self.empty_before = self.empty_before or not self.needed
        alone = self.needed == self.needed_runs <= 1
        self.run_before = self.run_before or (self.has_run and alone)
        self.needed, self.needed_runs, self.has_run = 0, 0, False

    def part(self) -> _Part:
        """What the group is within the one around it, once its last alternative has ended."""
        return _Part(may_be_empty=self.empty_before, may_be_run=self.run_before)

    def _settle(self) -> None:
        self.needed += not self.last.may_be_empty
        self.needed_runs += self.last.may_be_run and not self.last.may_be_empty
        self.has_run = self.has_run or self.last.may_be_run
        self.last = _NOTHING

    def repeat(self, times: int) -> None:
        self.states += self.last_states * (times - 1)
        self.last_states *= times
        self.last_nested *= times
        self.nested = max(self.nested, self.last_nested)


class _Reading:
    """One pass over a regex or an EBNF grammar.

    nested_of_rule: the largest product of counts in each rule, as an earlier pass found it.
    """

    def __init__(self, text: str, ebnf: bool, nested_of_rule: Mapping[str, int]) -> None:
        self._text = text
        self._ebnf = ebnf
        self._known = nested_of_rule
        self._place = 0
        self._rule = ""
        self._groups = [_Group()]
        self._ambiguous = False
        self.found: dict[str, int] = {}

    def fault(self, limits: GrammarLimits) -> str | None:
        """Read to the end, or to the first fault."""
        while self._place < len(self._text):
            self._step()
            top = self._groups[-1]
            if self._ambiguous:
                return _AMBIGUOUS
            if len(self._groups) - 1 > limits.group_levels:
                return _too_much("more groups within each other", str(limits.group_levels))
            if max(top.states, top.nested) > limits.states:
                return _too_much("more states once its counts are unrolled", str(limits.states))
        return None

    def _step(self) -> None:
        """Take the next thing: a literal, a class, a rule's name, a group's end, a count."""
        sign, top = self._text[self._place], self._groups[-1]
        count = _REPEAT.match(self._text, self._place) if sign == "{" else None
        name = _NAME.match(self._text, self._place) if self._ebnf else None
        if sign == "(":
            self._groups.append(_Group())
            if self._text.startswith("?:", self._place + 1):
                self._place += 2
        elif sign == ")" and len(self._groups) > 1:
            closed = self._groups.pop()
            closed.end_alternative()
            self._groups[-1].add(max(1, closed.states), closed.nested, closed.part())
        elif count:
            top.repeat(_times(count))
            least, comma, most = count.groups()
            self._quantify(int(least[:9] or 0) == 0, bool(comma) and not most)
            self._place = count.end() - 1
        elif sign in "*+?":
            self._quantify(sign != "+", sign != "?")
        elif sign == "|":
            top.end_alternative()
        elif name:
            self._take_name(name)
        elif sign == "[" or (self._ebnf and sign == '"'):
            end = self._end_of("]" if sign == "[" else sign)
            top.add(1 if sign == "[" else max(1, end - self._place - 1))
            self._place = end
        elif self._ebnf and sign == "#":
            end = self._text.find("\n", self._place)
            self._place = len(self._text) if end < 0 else end
        elif not (self._ebnf and sign.isspace()):
            self._place += sign == _ESCAPE
            top.add(1)
        self._place += 1
        self.found[self._rule] = max(self.found.get(self._rule, 1), self._groups[-1].nested)

    def _quantify(self, from_none: bool, without_bound: bool) -> None:
        """The last thing is repeated, from none or one on, with or without a bound."""
        top = self._groups[-1]
        last = top.last
        if without_bound and (last.may_be_run or (last.may_be_empty and last is not _NOTHING)):
            self._ambiguous = True
        top.last = _Part(
            may_be_empty=last.may_be_empty or from_none,
            may_be_run=last.may_be_run or without_bound,
        )

    def _take_name(self, name: re.Match[str]) -> None:
        self._place = name.end() - 1
        if name.group(2):
            self._rule = name.group(1)
            self._groups = [_Group(states=self._groups[0].states)]
        else:
            self._groups[-1].add(1, self._known.get(name.group(1), 1))

    def _end_of(self, closing: str) -> int:
        place = self._place + 1
        while place < len(self._text) and self._text[place] != closing:
            place += 2 if self._text[place] == _ESCAPE else 1
        return place


def _times(count: re.Match[str]) -> int:
    # More than 9 digits is too much whatever they say, and slow to read.
    least, _, most = count.groups()
    numbers = [10**9 if len(digits) > 9 else int(digits or 0) for digits in (least, most)]
    return max(1, *numbers)


def _fault_of_text(text: str, limits: GrammarLimits, *, ebnf: bool) -> str | None:
    if "\0" in text:
        return "the grammar has a NUL character, which is not allowed"
    nested: dict[str, int] = {}
    for _ in range(_PASSES if ebnf and "{" in text else 1):
        reading = _Reading(text, ebnf, nested)
        fault = reading.fault(limits)
        if fault is not None or reading.found == nested:
            return fault
        nested = reading.found
    return None
