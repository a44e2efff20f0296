"""The load that a profile is made from: which batches an idle server is led through.

First a climb to chunks as large and to as many rows as the time allows. Then corners
(largest chunk, longest prefix, most rows, fullest KV, and the smallest of each), then scenes drawn
at random between them until the time is used up. What the server makes of a scene is up to its
scheduler; the step trace says what really ran.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from echo_sglang.errors import ServerError

CONTEXT_MARGIN = 64
"""Tokens of the context left free for answers."""

STEM_SHARE = 0.5
"""Share of the KV pool that the shared prefix may take."""

FULL_SHARE = 0.85
"""Share of the KV pool that the fullest scene takes."""

SHORT_TOKENS = 8
SHORT_OUTPUTS = 12
MIN_OUTPUTS = 6
MAX_OUTPUTS = 60
SHORTEST_ROW = 0.3
"""Share of the longest row's KV that the shortest of an uneven scene has: rows that are served
together are rarely equal, and kernels like them less than equal ones."""

MAX_OWN_CHUNKS = 2
"""Chunks of prompt that the rows of a random scene together take: rows matter, not prompts."""

CHUNK_SHARE, LEAST_CHUNK_S = 0.005, 2.0
ROWS_SHARE, LEAST_ROWS_S = 0.03, 3.0
KV_SHARE, LEAST_KV_S = 0.15, 10.0
"""Of the time asked for, the largest chunk swept may take about this share, and a scene with most
rows, and to fill the KV pool; and so long at least. What lies between is most of what a profile is
asked."""

RUNG, LEAST_RUNG = 4, 1.25
"""From one scene of a climb to the next chunk or rows grow so many times at most, and at least."""

NEEDED_LIMITS = ("chunk_tokens", "rows", "kv_tokens", "context_tokens", "vocabulary")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request for one token: `prefix_tokens` of the stem, which is cached once it was
    computed, then `chunk_tokens` that are new."""

    chunk_tokens: int
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Rows that decode, and prompts that come while they do.

    rows: how many decode together, 0 for none. shared_tokens, own_tokens: KV of each that
    all share, and that it has alone. uneven: that is the longest row, the others have less.
    outputs: tokens each produces. groups: prompts that are sent together, one group after another.
    """

    name: str
    rows: int = 0
    shared_tokens: int = 0
    own_tokens: int = 0
    uneven: bool = False
    outputs: int = 0
    groups: tuple[tuple[Prompt, ...], ...] = ()

    def kv_of_rows(self) -> list[tuple[int, int]]:
        """(shared tokens, own tokens) of every row, the longest first."""
        least = SHORTEST_ROW if self.uneven else 1.0
        step = (1.0 - least) / max(self.rows - 1, 1)
        shares = [1.0 - step * number for number in range(self.rows)]
        return [
            (int(share * self.shared_tokens), max(int(share * self.own_tokens), 1))
            for share in shares
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest values a server allows, tokens and rows, as GET /echo/status names them."""

    chunk_tokens: int
    rows: int
    kv_tokens: int
    context_tokens: int
    vocabulary: int

    @classmethod
    def of(cls, values: Mapping[str, int]) -> Limits:
        """Raises ServerError if the server does not say all of them or is too small to profile."""
        missing = [name for name in NEEDED_LIMITS if name not in values]
        if missing:
            raise ServerError(
                f"the server does not say its {', '.join(missing)}: run the same release of "
                "echo_sglang on both sides"
            )
        limits = cls(**{name: int(values[name]) for name in NEEDED_LIMITS})
        if limits.stem_tokens < 2 * SHORT_TOKENS or limits.rows < 1:
            raise ServerError(
                f"a server with {limits.rows} rows, {limits.kv_tokens} KV tokens and a context of "
                f"{limits.context_tokens} is too small to profile"
            )
        return limits

    @property
    def stem_tokens(self) -> int:
        """The longest prefix that requests share."""
        longest = min(self.context_tokens - CONTEXT_MARGIN, int(STEM_SHARE * self.kv_tokens))
        return longest - self.chunk_tokens if longest > 2 * self.chunk_tokens else longest // 2

    @property
    def longest_chunk(self) -> int:
        """The most prompt tokens that one prompt after the longest prefix may have."""
        return min(self.chunk_tokens, self.stem_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach(Limits):
    """As far as a sweep goes. rows: of a few tokens. long_rows: after the longest prefix."""

    long_rows: int

    @property
    def read_tokens(self) -> int:
        """The most KV that the rows of one scene attend to."""
        return max(self.long_rows * self.stem_tokens, self.rows)


def affordable_kv(limits: Limits, chunk_tokens: int, chunk_s: float, allowed_s: float) -> int:
    """KV tokens that prompts fill within `allowed_s`, where a chunk takes `chunk_s`; enough at
    least for what the scenes of chunks of that size need."""
    filled = int(chunk_tokens * allowed_s / chunk_s) if chunk_s > 0.0 else limits.kv_tokens
    return min(limits.kv_tokens, max(filled, 8 * chunk_tokens))


def longest_prompt(limits: Limits) -> Scene:
    """Puts the prefix that others share into the cache."""
    return Scene(name="longest prompt", groups=((Prompt(1, limits.stem_tokens),),))


def prompt_scene(tokens: int) -> Scene:
    """One prompt of so many tokens."""
    return Scene(name=f"{tokens} tokens", groups=((Prompt(tokens),),))


def rows_scene(limits: Limits, rows: int) -> Scene:
    """So many rows after the longest prefix: what a decode step of them costs at most."""
    stem = limits.stem_tokens
    return Scene(name=f"{rows} rows, long", rows=rows, shared_tokens=stem, own_tokens=1, outputs=5)


def most_short_rows(limits: Limits) -> int:
    """Rows of a few tokens that the server takes and that its KV holds beside the stem."""
    room = int(FULL_SHARE * limits.kv_tokens) - limits.stem_tokens
    return max(min(limits.rows, room // (SHORT_TOKENS + SHORT_OUTPUTS)), 1)


def short_rows_scene(rows: int) -> Scene:
    """So many rows of a few tokens each."""
    return Scene(name=f"{rows} rows, short", rows=rows, own_tokens=SHORT_TOKENS, outputs=5)


def next_rung(reached: int, took_s: float, *, most: int, allowed_s: float) -> int:
    """How far to go after a scene of `reached` that took `took_s`: `reached` itself if more would
    take longer than `allowed_s`, or is not there.

    A server may allow rows by the hundred and chunks by the thousand that it computes for minutes.
    """
    affordable = int(reached * allowed_s / took_s) if took_s > 0.0 else most
    following = min(RUNG * reached, affordable, most)
    return following if following >= LEAST_RUNG * reached else reached


def corner_scenes(limits: Reach) -> list[Scene]:
    """The extremes, most telling first; about ten."""
    chunk, stem = limits.longest_chunk, limits.stem_tokens
    beside, long_beside = max(limits.rows - 2, 1), max(limits.long_rows - 2, 1)
    ends = ((Prompt(chunk),), (Prompt(1),), (Prompt(chunk, stem),), (Prompt(1, stem),))
    full_own = int(FULL_SHARE * limits.kv_tokens / limits.rows) - MAX_OUTPUTS
    full_own = max(min(full_own, limits.context_tokens - CONTEXT_MARGIN), 1)
    long = {"shared_tokens": stem, "own_tokens": 1}
    short = {"own_tokens": SHORT_TOKENS}
    return [
        Scene(name="ends of prompts", groups=ends),
        Scene(name="one short row", rows=1, outputs=SHORT_OUTPUTS, **short),
        Scene(name="most rows, short", rows=limits.rows, outputs=SHORT_OUTPUTS, **short),
        Scene(name="one long row", rows=1, outputs=12, groups=ends, **long),
        Scene(name="rows and prompts, long", rows=long_beside, outputs=10, groups=ends, **long),
        Scene(
            name="rows and prompts, short", rows=beside, outputs=SHORT_OUTPUTS, groups=ends, **short
        ),
        Scene(
            name="fullest KV",
            rows=limits.rows,
            own_tokens=full_own,
            outputs=_outputs(limits, limits.rows * full_own, decode_steps=4),
        ),
    ]


def random_scenes(limits: Reach, rng: random.Random) -> Iterator[Scene]:
    """Scenes between the extremes, without end; sizes are spread evenly over magnitudes."""
    room = int(FULL_SHARE * limits.kv_tokens) - limits.stem_tokens - 4 * limits.chunk_tokens
    room = min(room, MAX_OWN_CHUNKS * limits.chunk_tokens)
    number = 0
    while True:
        number += 1
        rows = _spread(rng, 1, limits.rows) if rng.random() < 0.75 else 0
        groups = tuple(
            tuple(_prompt(limits, rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))
            for _ in range(rng.randint(0 if rows else 3, 5))
        )
        if groups:
            rows = min(rows, max(limits.rows - 3, 1))
        own = _spread(rng, 1, max(limits.stem_tokens // 4, 2))
        own = max(min(own, room // max(rows, 1) - MAX_OUTPUTS), 1)
        longest = min(limits.stem_tokens, max(limits.read_tokens // max(rows, 1), 1))
        steps = MIN_OUTPUTS + 2 * len(groups)
        yield Scene(
            name=f"random {number}",
            rows=rows,
            shared_tokens=rng.choice((0, _spread(rng, 1, longest))),
            own_tokens=own,
            uneven=True,
            outputs=_outputs(limits, rows * own, decode_steps=steps) if rows else 0,
            groups=groups,
        )


def _outputs(limits: Limits, own_tokens: int, *, decode_steps: int) -> int:
    """Answers so long that the first row still decodes `decode_steps` after the last began."""
    return min(math.ceil(own_tokens / limits.chunk_tokens) + decode_steps, MAX_OUTPUTS)


def _prompt(limits: Limits, rng: random.Random) -> Prompt:
    prefix = 0 if rng.random() < 0.35 else _spread(rng, 1, limits.stem_tokens)
    return Prompt(_spread(rng, 1, limits.longest_chunk), prefix)


def _spread(rng: random.Random, low: int, high: int) -> int:
    """A whole number between both, its logarithm evenly spread."""
    return min(round(math.exp(rng.uniform(math.log(low), math.log(high + 1)))), max(high, low))
