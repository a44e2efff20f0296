"""Offline work from files: request lengths, and batch files in OpenAI's JSONL format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from echo_sglang.domain.tag import ServiceClass
from echo_sglang.errors import WorkloadError
from echo_sglang.sim.trace_files import csv_rows, json_rows, read_count
from echo_sglang.sim.workload import Request, Segment

CHARACTERS_PER_TOKEN = 4
DEFAULT_ANSWER_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthsFile:
    """Requests of given lengths that share nothing.

    path: a CSV file with the columns `num_prefill_tokens` and `num_decode_tokens`, as vidur
    processes traces (arXiv summarization: 28,257 rows). limit: this many rows, drawn
    without repetition; None takes all, in the file's order.
    """

    path: Path
    limit: int | None = None
    arrival_s: float = 0.0
    deadline_s: float | None = None

    def requests(self, seed: int) -> list[Request]:
        """The requests of one seed. Raises WorkloadError if the file lacks something."""
        columns = ("num_prefill_tokens", "num_decode_tokens")
        rows = list(csv_rows(self.path, columns))
        rng = np.random.default_rng([seed, 6])
        if self.limit is not None:
            if not 1 <= self.limit <= len(rows):
                raise WorkloadError(
                    f"{self.path.name} holds {len(rows)} requests, {self.limit} were asked for"
                )
            rows = [rows[i] for i in rng.permutation(len(rows))[: self.limit]]
        texts = rng.integers(1 << 62, size=len(rows)).tolist()
        return [
            Request(
                rid=f"job-{line}",
                arrival_s=self.arrival_s,
                prompt=(Segment(text, read_count(self.path, line, row, columns[0])),),
                output_tokens=read_count(self.path, line, row, columns[1]),
                service_class=ServiceClass.OFFLINE,
                deadline_s=self.deadline_s,
            )
            for text, (line, row) in zip(texts, rows, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFile:
    """An OpenAI batch file: one JSON object a line with `custom_id` and `body`.

    Without a tokenizer every CHARACTERS_PER_TOKEN characters count as one token; equal
    beginnings of prompts stay equal. answer_share: how much of `max_tokens` answers use.
    """

    path: Path
    answer_share: float = 1.0
    arrival_s: float = 0.0
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.answer_share <= 1.0:
            raise WorkloadError(
                f"answer_share {self.answer_share:g}: it must be above 0 and at most 1"
            )

    def requests(self, seed: int) -> list[Request]:
        """The lines of the file. `seed` changes nothing: the file says everything."""
        return [self._request(line, row) for line, row in json_rows(self.path)]

    def _request(self, line: int, row: dict[str, Any]) -> Request:
        body = row.get("body")
        if not isinstance(row.get("custom_id"), str) or not isinstance(body, dict):
            raise WorkloadError(
                f"{self.path.name} line {line}: expected an object with custom_id and body"
            )
        allowed = body.get("max_completion_tokens", body.get("max_tokens", DEFAULT_ANSWER_TOKENS))
        if isinstance(allowed, bool) or not isinstance(allowed, int) or allowed < 1:
            raise WorkloadError(
                f"{self.path.name} line {line}: max_tokens is {allowed!r}; expected 1 or more"
            )
        return Request(
            rid=f"batch-{line}-{row['custom_id']}",
            arrival_s=self.arrival_s,
            prompt=tuple(_segments(self._text(line, body))),
            output_tokens=max(round(allowed * self.answer_share), 1),
            max_new_tokens=allowed,
            service_class=ServiceClass.OFFLINE,
            deadline_s=self.deadline_s,
        )

    def _text(self, line: int, body: dict[str, Any]) -> str:
        """The prompt as one text: a string, or chat messages one after the other."""
        if isinstance(body.get("prompt"), str) and body["prompt"]:
            return str(body["prompt"])
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise WorkloadError(
                f"{self.path.name} line {line}: body needs messages (a list) or prompt (a text)"
            )
        return "\n".join(json.dumps(message, sort_keys=True) for message in messages)


def _segments(text: str) -> Iterator[Segment]:
    """One token per piece of text, named by its content."""
    for start in range(0, len(text), CHARACTERS_PER_TOKEN):
        piece = text[start : start + CHARACTERS_PER_TOKEN]
        yield Segment(int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=7).digest()), 1)
