"""What the emulated model says: tokens that differ, and an end where the workload puts it."""

from __future__ import annotations

from collections.abc import Iterable

EOS_TOKEN = 2
FIRST_TOKEN = 16
"""Ids below it are never prompts or answers, so that no text ends by accident."""
VOCABULARY = 32_000


class Answers:
    """Output length and seed of every request, by request id.

    A request's answer is `output_tokens` long, its end-of-sequence token included. Answers
    of two requests differ, or duplicates of a prompt would hit the cache by accident.
    """

    def __init__(self) -> None:
        self._answers: dict[str, tuple[int, int]] = {}  # (index of the last token, seed)

    def expect(self, rid: str, output_tokens: int) -> None:
        """Define the answer of `rid`."""
        self._answers[rid] = output_tokens - 1, (len(self._answers) + 1) * 7919

    def next_tokens(self, wanted: Iterable[tuple[str, int]]) -> list[int]:
        """Token number `index` (from 0) for each (rid, index).

        An index below 0 is a prompt that is not yet complete: nobody looks at its token.
        """
        span = VOCABULARY - FIRST_TOKEN
        answers, tokens = self._answers, []
        for rid, index in wanted:
            last, seed = answers[rid]
            if index >= last:
                tokens.append(EOS_TOKEN)
            else:
                tokens.append(FIRST_TOKEN + (seed + index * 104_729 + index * index) % span)
        return tokens
