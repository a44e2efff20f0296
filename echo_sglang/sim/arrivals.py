"""Synthetic online traffic: Poisson arrivals, with bursts if wanted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from echo_sglang.errors import WorkloadError
from echo_sglang.sim.workload import Request, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A distribution of token counts: uniform on [mean * (1 - spread), mean * (1 + spread)]."""

    mean: int
    spread: float = 0.5

    def __post_init__(self) -> None:
        if self.mean < 1 or not 0.0 <= self.spread < 1.0:
            raise WorkloadError(
                f"lengths of mean {self.mean} and spread {self.spread}: the mean must be 1 or "
                "more, the spread in [0, 1)"
            )

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """`count` lengths of 1 or more."""
        low, high = self.mean * (1 - self.spread), self.mean * (1 + self.spread)
        return [max(round(value), 1) for value in rng.uniform(low, high, count).tolist()]


CHAT_PROMPT = Lengths(mean=600)
CHAT_ANSWER = Lengths(mean=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonTraffic:
    """Independent users: `rate_per_s` on average, and `burst_size` at once every
    `burst_every_s` seconds, first at half of that. max_new_tokens: see `Request`."""

    rate_per_s: float
    window_s: float
    prompt: Lengths = CHAT_PROMPT
    output: Lengths = CHAT_ANSWER
    burst_size: int = 0
    burst_every_s: float = 30.0
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.window_s <= 0 or self.rate_per_s < 0 or self.burst_every_s <= 0:
            raise WorkloadError(
                f"rate {self.rate_per_s}/s for {self.window_s} s with bursts every "
                f"{self.burst_every_s} s: the window and the period must be above 0, the rate "
                "not below"
            )

    def requests(self, seed: int) -> list[Request]:
        """Draw the traffic of one seed."""
        times_seed, lengths_seed, text_seed = np.random.SeedSequence([seed, 1]).spawn(3)
        times_s = self._times(np.random.default_rng(times_seed))
        rng = np.random.default_rng(lengths_seed)
        prompts = self.prompt.draw(rng, len(times_s))
        outputs = self.output.draw(rng, len(times_s))
        texts = np.random.default_rng(text_seed).integers(1 << 62, size=len(times_s)).tolist()
        return [
            Request(
                rid=f"on-{index}",
                arrival_s=time_s,
                prompt=(Segment(text, prompt),),
                output_tokens=output,
                max_new_tokens=self.max_new_tokens,
            )
            for index, (time_s, prompt, output, text) in enumerate(
                zip(times_s, prompts, outputs, texts, strict=True)
            )
        ]

    def _times(self, rng: np.random.Generator) -> list[float]:
        count = rng.poisson(self.rate_per_s * self.window_s)
        times_s = rng.uniform(0.0, self.window_s, count).tolist()
        if self.burst_size:
            bursts = np.arange(self.burst_every_s / 2, self.window_s, self.burst_every_s)
            times_s += [float(t) for t in bursts for _ in range(self.burst_size)]
        return sorted(times_s)
