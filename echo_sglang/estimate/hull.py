"""The batches a model has seen, and how far a batch lies beyond them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from echo_sglang.domain.batch import BatchShape, Regime

PROFILE_REACH = 1.05
"""A profile's sweep has its corners: beyond them is a guess."""
LIVE_REACH = 2.0
"""A live server grows into larger batches: up to twice what was seen is no guess."""

Extent = tuple[float, float, float, float, float, float, float]
"""Extend tokens, attention pairs, prefix tokens of all prompts, decode rows, KV tokens, KV tokens a
row, longest prefix. None of them falls when a chunk grows into more prompts, as a mean would."""

NOTHING: Extent = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def extent(shape: BatchShape) -> Extent:
    """How large a batch is in every respect."""
    extend, rows, kv = shape.extend_tokens, shape.decode_rows, shape.decode_kv_tokens
    pairs = shape.extend_pairs
    return (
        extend,
        pairs + 0.5 * shape.extend_square,
        shape.extend_prefix_tokens,
        rows,
        kv,
        kv / rows if rows else 0.0,
        shape.longest_prefix,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hull:
    """The largest extents measured, per regime, and the factor up to which they are trusted.

    shared: one extent for all regimes; what one has seen, the others may grow from.
    """

    reach: float
    shared: bool = False
    extend: Extent = NOTHING
    decode: Extent = NOTHING
    mixed: Extent = NOTHING

    def __post_init__(self) -> None:
        assert self.reach >= 1.0

    def largest(self, regime: Regime) -> Extent:
        """The largest of everything seen in one regime."""
        if regime is Regime.DECODE:
            return self.decode
        return self.mixed if regime is Regime.MIXED else self.extend

    def excess(self, shape: BatchShape) -> float:
        """How many times a batch is larger than what is trusted; at most 1.0 if it is not.

        inf for a kind of batch never seen. Never falls when a chunk grows.
        """
        extend, pairs, square, rows, kv, prefixes, longest_prefix = shape
        if not extend:
            seen = self.decode
        elif rows:
            seen = self.mixed
        else:
            seen = self.extend
        tokens, work, prefix, most_rows, most_kv, row_kv, longest = seen
        # Nearly always inside, and asked dozens of times a decision.
        if (
            (not rows or (rows <= most_rows and kv <= most_kv and kv <= row_kv * rows))
            and (not extend or (extend <= tokens and prefixes <= prefix))
            and longest_prefix <= longest
            and pairs + 0.5 * square <= work
        ):
            return 0.0
        worst = 0.0
        for value, largest in zip(extent(shape), seen, strict=True):
            if value > largest * worst and value > 0.0:
                worst = value / largest if largest else math.inf
        return worst / self.reach

    def grown(self, shape: BatchShape) -> Hull:
        """This hull with one more batch in it; itself if the batch was inside."""
        if self.excess(shape) == 0.0:
            return self
        regime = shape.regime
        larger = _larger(self.largest(regime), extent(shape))
        if self.shared:
            return replace(self, extend=larger, decode=larger, mixed=larger)
        if regime is Regime.DECODE:
            return replace(self, decode=larger)
        if regime is Regime.MIXED:
            return replace(self, mixed=larger)
        return replace(self, extend=larger)


def live_hull() -> Hull:
    """The hull of a server that learns from nothing: it may grow in tokens, rows and KV.

    Prefixes and long rows are not held against it, lest it never gets to know them.
    """
    nothing: Extent = (0.0, math.inf, math.inf, 0.0, 0.0, math.inf, math.inf)
    return Hull(reach=LIVE_REACH, shared=True, extend=nothing, decode=nothing, mixed=nothing)


def hull_of(shapes: Iterable[BatchShape], reach: float) -> Hull:
    """The hull of these batches."""
    hull = Hull(reach=reach)
    for shape in shapes:
        hull = hull.grown(shape)
    return hull


def _larger(a: Extent, b: Extent) -> Extent:
    return (
        max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2]),
        max(a[3], b[3]), max(a[4], b[4]), max(a[5], b[5]),
        max(a[6], b[6]),
    )  # fmt: skip
