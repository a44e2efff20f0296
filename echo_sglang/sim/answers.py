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
        self._lengths: dict[str, int] = {}
        self._seeds: dict[str, int] = {}

    def expect(self, rid: str, output_tokens: int) -> None:
        """Define the answer of `rid`."""
        self._seeds[rid] = len(self._seeds) + 1
        self._lengths[rid] = output_tokens

    def token(self, rid: str, index: int) -> int:
        """The token number `index` (from 0) of the answer to `rid`."""
        if index >= self._lengths[rid] - 1:
            return EOS_TOKEN
        span = VOCABULARY - FIRST_TOKEN
        return FIRST_TOKEN + (self._seeds[rid] * 7919 + index * 104_729 + index * index) % span

    def next_tokens(self, rids: Iterable[tuple[str, int]]) -> list[int]:
        """One token for each (rid, index); an index below 0 is a prompt not yet complete."""
        return [self.token(rid, index) for rid, index in rids]
