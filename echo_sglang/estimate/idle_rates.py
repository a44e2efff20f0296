"""How fast a server would be with offline work alone, from its model of iteration times.

A closed form for forecasts: whole chunks of new prompts, and full batches of rows that decode in
a middling context. Prompts that attend to long prefixes, rows that wait for others and online
requests all make it slower, so what does not fit at these rates does not fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from echo_sglang.domain.batch import BatchShape

MIDDLING_CONTEXT_TOKENS = 1_024


class IterationModel(Protocol):
    """What is asked of `step_time.StepTimeModel`."""

    @property
    def trained(self) -> bool:
        """Whether it knows anything."""

    def predict(self, shape: BatchShape) -> float:
        """Seconds."""

    def extrapolates(self, shape: BatchShape) -> bool:
        """Whether it has seen nothing like this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleRates:
    """Tokens per second of prompts computed, and of output with as many rows as fit."""

    prompt_tokens_per_s: float
    output_tokens_per_s: float


def idle_rates(
    model: IterationModel, *, chunk_tokens: int, rows: int, kv_tokens: int
) -> IdleRates | None:
    """None while the model knows nothing. Sizes that the server allows but the model has never
    seen are halved until it has: a guess must not promise more than what was measured."""
    if not model.trained:
        return None
    most_rows = max(min(rows, kv_tokens // MIDDLING_CONTEXT_TOKENS), 1)
    prompt = _rate(model, max(chunk_tokens, 1), _chunk)
    output = _rate(model, most_rows, _decode)
    if prompt is None or output is None:
        return None
    return IdleRates(prompt_tokens_per_s=prompt, output_tokens_per_s=output)


def _rate(model: IterationModel, size: int, shape_of: Callable[[int], BatchShape]) -> float | None:
    while size > 1 and model.extrapolates(shape_of(size)):
        size //= 2
    seconds = model.predict(shape_of(size))
    return size / seconds if seconds > 0.0 else None


def _chunk(tokens: int) -> BatchShape:
    return BatchShape(extend_tokens=tokens, extend_square=tokens * tokens)


def _decode(rows: int) -> BatchShape:
    return BatchShape(decode_rows=rows, decode_kv_tokens=rows * MIDDLING_CONTEXT_TOKENS)
