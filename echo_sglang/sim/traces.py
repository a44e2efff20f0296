"""Online traffic from published traces: Azure 2023, Mooncake FAST'25, ServeGen.

Every reader checks the whole file first and raises WorkloadError that names the file, the
line and what is wrong. A part of a trace is taken by time window and by share: each request
is kept with a probability, by a seeded draw.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from echo_sglang.errors import WorkloadError
from echo_sglang.sim.arrivals import CHAT_ANSWER, CHAT_PROMPT, Lengths
from echo_sglang.sim.trace_files import (
    csv_rows,
    json_rows,
    read_count,
    read_number,
    read_timestamp_s,
)
from echo_sglang.sim.workload import Request, Segment, check_times

MOONCAKE_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The part of a trace between two of its seconds, and the share of requests kept."""

    start_s: float = 0.0
    end_s: float = float("inf")
    keep: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_s < self.end_s:
            raise WorkloadError(
                f"time window {self.start_s:g} to {self.end_s:g} s: it must start at 0 or later "
                "and end after it starts"
            )
        if not 0.0 < self.keep <= 1.0:
            raise WorkloadError(f"share kept {self.keep:g}: it must be above 0 and at most 1")

    def pick(self, times_s: list[float], seed: int) -> list[int]:
        """Indices of the requests of this part."""
        kept = np.random.default_rng([seed, 3]).random(len(times_s)) < self.keep
        inside = [self.start_s <= t < self.end_s for t in times_s]
        return [i for i, both in enumerate(np.logical_and(kept, inside)) if both]


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureTrace:
    """AzurePublicDataset, AzureLLMInferenceTrace_{code,conv}.csv (Patel et al., ISCA 2024).

    Lengths only: every prompt is a text of its own.
    """

    path: Path
    part: Part = Part()

    def requests(self, seed: int) -> list[Request]:
        """Requests of the part, the first moment of which is second 0."""
        rows = list(csv_rows(self.path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")))
        stamps_s = [read_timestamp_s(self.path, line, row["TIMESTAMP"]) for line, row in rows]
        times_s = [stamp_s - stamps_s[0] for stamp_s in stamps_s]
        check_times(times_s, self.path.name)
        texts = np.random.default_rng([seed, 4]).integers(1 << 62, size=len(rows)).tolist()
        return [
            Request(
                rid=f"azure-{index}",
                arrival_s=times_s[index] - self.part.start_s,
                prompt=(
                    Segment(texts[index], read_count(self.path, *rows[index], "ContextTokens")),
                ),
                output_tokens=read_count(self.path, *rows[index], "GeneratedTokens"),
            )
            for index in self.part.pick(times_s, seed)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class MooncakeTrace:
    """Mooncake FAST'25 JSONL (Qin et al.): `hash_ids` name blocks of 512 tokens.

    Equal leading ids become equal leading tokens, so the trace's prefix sharing is real.
    max_prompt_tokens: longer requests are left out; `left_out` of a plan says how many.
    """

    path: Path
    part: Part = Part()
    max_prompt_tokens: int | None = None

    def requests(self, seed: int) -> list[Request]:
        """Requests of the part, the first moment of which is second 0."""
        rows = list(json_rows(self.path))
        times_s = [read_number(self.path, line, row, "timestamp") / 1e3 for line, row in rows]
        check_times(times_s, self.path.name)
        found: list[Request] = []
        for index in self.part.pick(times_s, seed):
            line, row = rows[index]
            prompt = self._prompt(line, row, seed)
            limit = self.max_prompt_tokens
            if limit is not None and sum(s.tokens for s in prompt) > limit:
                continue
            found.append(
                Request(
                    rid=f"mooncake-{index}",
                    arrival_s=times_s[index] - self.part.start_s,
                    prompt=prompt,
                    output_tokens=max(int(read_number(self.path, line, row, "output_length")), 1),
                )
            )
        return found

    def _prompt(self, line: int, row: dict[str, Any], seed: int) -> tuple[Segment, ...]:
        left = int(read_number(self.path, line, row, "input_length"))
        ids = row.get("hash_ids")
        if not isinstance(ids, list) or left < 1 or len(ids) != -(-left // MOONCAKE_BLOCK_TOKENS):
            raise WorkloadError(
                f"{self.path.name} line {line}: {left} input tokens need "
                f"{-(-left // MOONCAKE_BLOCK_TOKENS)} hash_ids, one per "
                f"{MOONCAKE_BLOCK_TOKENS} tokens"
            )
        salt = seed << 32
        full = [Segment(salt + int(i), MOONCAKE_BLOCK_TOKENS) for i in ids[:-1]]
        # A block that is cut short is a block's beginning: its seed draws the same tokens.
        return (*full, Segment(salt + int(ids[-1]), left - MOONCAKE_BLOCK_TOKENS * len(full)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeGenRates:
    """ServeGen (arXiv 2505.09999) total request rates in windows of ten minutes.

    scale: share of the published rate, which is that of a whole fleet. Within a window
    arrivals are Poisson; lengths are drawn, because the rates come without them.
    """

    path: Path
    part: Part = Part()
    scale: float = 0.01
    prompt: Lengths = CHAT_PROMPT
    output: Lengths = CHAT_ANSWER

    def requests(self, seed: int) -> list[Request]:
        """Requests of the part, the first moment of which is second 0."""
        starts_s, rates = self._rates()
        rng = np.random.default_rng([seed, 5])
        times_s = self._times(starts_s, rates, rng)
        prompts = self.prompt.draw(rng, len(times_s))
        outputs = self.output.draw(rng, len(times_s))
        texts = rng.integers(1 << 62, size=len(times_s)).tolist()
        return [
            Request(
                rid=f"servegen-{i}",
                arrival_s=time_s - self.part.start_s,
                prompt=(Segment(texts[i], prompts[i]),),
                output_tokens=outputs[i],
            )
            for i, time_s in enumerate(times_s)
        ]

    def end_s(self) -> float:
        """Where the last window ends."""
        starts_s, _ = self._rates()
        return 2 * starts_s[-1] - starts_s[-2]

    def _rates(self) -> tuple[list[float], list[float]]:
        """Starts of the windows in seconds, and requests per second in each."""
        rows = list(csv_rows(self.path, ("window_start_s", "req_per_s")))
        starts_s = [read_number(self.path, line, row, "window_start_s") for line, row in rows]
        rates = [read_number(self.path, line, row, "req_per_s") for line, row in rows]
        check_times(starts_s, self.path.name)
        if not all(0.0 <= rate < float("inf") for rate in rates) or self.scale <= 0.0:
            raise WorkloadError(
                f"{self.path.name}: rates must be finite and not below 0, the scale above 0"
            )
        if len(starts_s) < 2:
            raise WorkloadError(f"{self.path.name}: at least two windows are needed")
        return starts_s, rates

    def _times(
        self, starts_s: list[float], rates: list[float], rng: np.random.Generator
    ) -> list[float]:
        """Thinning: draw at the highest rate, keep in proportion to the rate at that moment."""
        end_s = min(self.part.end_s, 2 * starts_s[-1] - starts_s[-2])
        highest = max(rates) * self.scale * self.part.keep
        count = rng.poisson(highest * max(end_s - self.part.start_s, 0.0))
        drawn_s = np.sort(rng.uniform(self.part.start_s, end_s, count)).tolist()
        keeps = rng.random(count)
        places = [max(bisect.bisect_right(starts_s, t) - 1, 0) for t in drawn_s]
        return [
            t
            for t, place, keep in zip(drawn_s, places, keeps, strict=True)
            if keep * max(rates) < rates[place]
        ]
