"""Will a batch make its window? Said before any of its lines has run, never refused.

Work is counted as the scheduler counts it (`policy/deadlines.py`): prompt tokens that no other
line shares, and output tokens that are allowed, weighed. Prompts are not tokenized for that;
bytes stand for tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from echo_sglang.policy.jobs import OUTPUT_COST

BYTES_A_TOKEN = 4.0
ASSUMED_OUTPUT_TOKENS = 512
"""Of a line that names no limit."""
MOST_OUTPUT_TOKENS = 131_072
"""Of one line; what asks for more is refused when it runs, or ends before."""
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
_MOST_CHOICES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What all lines of a batch ask for.

    prompt_bytes: of prompts, shared beginnings once. output_tokens: what answers may have.
    """

    prompt_bytes: int = 0
    output_tokens: int = 0

    @property
    def work(self) -> float:
        """In the scheduler's tokens."""
        return self.prompt_bytes / BYTES_A_TOKEN + OUTPUT_COST * self.output_tokens

    def __add__(self, other: Demand) -> Demand:
        return Demand(
            prompt_bytes=self.prompt_bytes + other.prompt_bytes,
            output_tokens=self.output_tokens + other.output_tokens,
        )

    def share(self, part: float) -> Demand:
        """The same, `part` (0 to 1) of it."""
        return Demand(
            prompt_bytes=round(part * self.prompt_bytes),
            output_tokens=round(part * self.output_tokens),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast the server does offline work; None while it does not know.

    measured: beside the online load of the last minute in which offline work waited.
    idle: what its model of iteration times says of a server with nobody online.
    """

    measured_work_per_s: float | None = None
    idle_prompt_tokens_per_s: float | None = None
    idle_output_tokens_per_s: float | None = None

    def seconds_for(self, demand: Demand) -> float | None:
        """How long so much takes, alone; None if not known."""
        if self.measured_work_per_s:
            return demand.work / self.measured_work_per_s
        if self.idle_prompt_tokens_per_s and self.idle_output_tokens_per_s:
            prompts_s = demand.prompt_bytes / BYTES_A_TOKEN / self.idle_prompt_tokens_per_s
            return prompts_s + demand.output_tokens / self.idle_output_tokens_per_s
        return None

    @property
    def basis(self) -> str:
        """Where the figures come from, as the API names it."""
        if self.measured_work_per_s:
            return "measured_pace"
        return "idle_server" if self.idle_output_tokens_per_s else "unknown"


NO_DEMAND = Demand()


def speed_of(status: object) -> Speed:
    """From the answer of GET /echo/status; of several replicas together if there are several."""
    replicas = status if isinstance(status, list) else [status]
    found = [_speed_of_one(each) for each in replicas]
    return Speed(
        measured_work_per_s=_sum([each.measured_work_per_s for each in found]),
        idle_prompt_tokens_per_s=_sum([each.idle_prompt_tokens_per_s for each in found]),
        idle_output_tokens_per_s=_sum([each.idle_output_tokens_per_s for each in found]),
    )


def output_tokens_of(body: Mapping[str, Any]) -> int:
    """What the answers to one request may have; what cannot be read counts as not given."""
    tokens = ASSUMED_OUTPUT_TOKENS
    for name in _LIMITS:
        given = body.get(name)
        if given is not None:
            tokens = _count_of(given, tokens)
            break
    times = min(_count_of(body.get("n"), 1), _MOST_CHOICES)
    return min(tokens, MOST_OUTPUT_TOKENS) * times


def warning_of(needs_s: float | None, left_s: float, basis: str) -> str | None:
    """One sentence if a batch that needs `needs_s` will not be done in `left_s`."""
    if needs_s is None or needs_s <= left_s:
        return None
    how = {
        "measured_pace": "at the pace of offline work in the last minute",
        "idle_server": "even with nobody online",
        "own_pace": "at its present pace",
    }[basis]
    return (
        f"{how} it needs about {needs_s:,.0f} s, its window has {max(left_s, 0.0):,.0f} s left; "
        "lines without an answer by then will be error lines (batch_expired)"
    )


def _speed_of_one(status: object) -> Speed:
    offline = status.get("offline") if isinstance(status, Mapping) else None
    if not isinstance(offline, Mapping):
        return Speed()
    idle = offline.get("idle_server") or {}
    return Speed(
        measured_work_per_s=offline.get("work_tokens_per_s"),
        idle_prompt_tokens_per_s=idle.get("prompt_tokens_per_s"),
        idle_output_tokens_per_s=idle.get("output_tokens_per_s"),
    )


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _count_of(value: object, otherwise: int) -> int:
    return value if type(value) is int and value > 0 else otherwise
