"""What a regex or an EBNF grammar stands for, found by reading its text once.

Compilers unroll counts, and match all readings of a text at once: both cost every token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_REPEAT = re.compile(r"\{\s*(\d*)\s*(,?)\s*(\d*)\s*\}")
_NAME = re.compile(r"([A-Za-z_][\w.-]*)(\s*::=)?")
_AMBIGUOUS = (
    "the grammar repeats without bound what may itself be empty or nothing but such a repeat, as "
    "in (a*)* or ([a-z]+ ?)+: a text has then ever more readings, and every token costs all "
    "requests more time; write a*, or [a-z]+( [a-z]+)*"
)
_PASSES = 4
"""Over EBNF: counts of rules that are repeated within rules are seen this many rules deep."""
_ESCAPE = "\\"


def fault_of_text(text: str, *, ebnf: bool, most_group_levels: int, most_states: int) -> str | None:
    """What the grammar has and what is allowed, in words; None if it may be compiled."""
    if "\0" in text:
        return "the grammar has a NUL character, which is not allowed"
    nested: dict[str, int] = {}
    for _ in range(_PASSES if ebnf and "{" in text else 1):
        reading = _Reading(text, ebnf, nested)
        fault = reading.fault(most_group_levels, most_states)
        if fault is not None or reading.found == nested:
            return fault
        nested = reading.found
    return None


def too_much(given: str, allowed: str) -> str:
    """The sentence for a grammar that has more than is allowed."""
    return f"the grammar has {given}; at most {allowed} are taken"


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

    def fault(self, most_group_levels: int, most_states: int) -> str | None:
        """Read to the end, or to the first fault."""
        while self._place < len(self._text):
            self._step()
            top = self._groups[-1]
            if self._ambiguous:
                return _AMBIGUOUS
            if len(self._groups) - 1 > most_group_levels:
                return too_much("more groups within each other", str(most_group_levels))
            if max(top.states, top.nested) > most_states:
                return too_much("more states once its counts are unrolled", str(most_states))
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
