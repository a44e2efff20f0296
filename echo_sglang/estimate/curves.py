"""Times that never fall when work grows: sums of monotone piecewise-linear curves.

Each input of a batch (tokens, attention work, cached prefix, decode rows, KV read) has a
curve; its segments are regressors of one non-negative least-squares fit weighted by
1/seconds, so short and long iterations count alike and the sum is monotone in every input.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear, nnls

from echo_sglang.domain.batch import BatchShape

Array = NDArray[np.float64]

NUM_INPUTS = 5
FINE_TOKEN_SAMPLES = 150
"""Iterations of a regime from which the steps of GEMM tiles can be told from noise."""

# GEMM kernels compute tiles of 64 or 128 tokens: a step up right after each multiple.
TILE_KNOTS = (
    8, 16, 32,
    *(64 * tile + end for tile in range(1, 16) for end in (0, 16)),
    *(128 * tile + end for tile in range(8, 32) for end in (0, 16)),
    4096, 6144, 8192, 12288, 16384, 32768,
)  # fmt: skip
COARSE_TOKEN_KNOTS = tuple(2**i for i in range(3, 16))
WORK_KNOTS = tuple(2**i for i in range(10, 34, 2))
PREFIX_KNOTS = tuple(2**i for i in range(6, 20, 2))
ROW_KNOTS = tuple(2**i for i in range(2, 12, 2))
KV_KNOTS = tuple(2**i for i in range(8, 26, 2))


def inputs(shape: BatchShape) -> tuple[float, float, float, float, float]:
    """What the curves depend on; each grows, or stays, when a chunk grows.

    Tokens through the dense layers, pairs of tokens in prefill attention, cached prefix read
    by it, decode rows, KV tokens they read. Of a shape whose prefix is not given it is at
    least the mean prefix.
    """
    extend = shape.extend_tokens
    prefix: float = shape.extend_prefix_tokens
    if extend and not prefix:
        prefix = shape.extend_pairs / extend
    return (
        extend + shape.decode_rows,
        shape.extend_pairs + 0.5 * shape.extend_square,
        prefix,
        shape.decode_rows,
        shape.decode_kv_tokens,
    )


@dataclass(frozen=True, slots=True)
class Curve:
    """A piecewise-linear function: `offsets_s[i] + slopes_s[i] * x` between knots i-1 and i."""

    knots: tuple[float, ...]
    offsets_s: tuple[float, ...]
    slopes_s: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.offsets_s) == len(self.slopes_s) == len(self.knots) + 1

    def at(self, x: float) -> float:
        """Seconds that input `x` costs."""
        i = bisect_right(self.knots, x)
        return self.offsets_s[i] + self.slopes_s[i] * x


FLAT = Curve((), (0.0,), (0.0,))


@dataclass(frozen=True, slots=True)
class CurveSum:
    """A constant plus one curve per input, in the order of `inputs`."""

    constant_s: float
    curves: tuple[Curve, ...]

    def __post_init__(self) -> None:
        assert len(self.curves) == NUM_INPUTS

    def seconds(self, x: tuple[float, float, float, float, float]) -> float:
        """Seconds of a batch with these inputs; never falls when one of them grows."""
        total = self.constant_s
        for curve, value in zip(self.curves, x, strict=True):
            i = bisect_right(curve.knots, value)
            total += curve.offsets_s[i] + curve.slopes_s[i] * value
        return total

    def many(self, x: Array) -> Array:
        """`seconds` of every row of `x`, shape (n, NUM_INPUTS)."""
        total = np.full(len(x), self.constant_s)
        for j, curve in enumerate(self.curves):
            i = np.searchsorted(curve.knots, x[:, j], side="right")
            total += np.array(curve.offsets_s)[i] + np.array(curve.slopes_s)[i] * x[:, j]
        return total


def fit_curves(x: Array, seconds: Array, weights: Array, own: NDArray[np.bool_]) -> CurveSum:
    """Fit curves to `seconds` (n,) at inputs `x` (n, NUM_INPUTS).

    weights: importance of each row. own: rows of the regime that is fitted; where only few
    are its own, token curves are coarse. Beyond the last own row a curve goes on as steeply
    as it rose over its upper half or quarter.
    """
    fine = int(own.sum()) >= FINE_TOKEN_SAMPLES
    tokens = TILE_KNOTS if fine else COARSE_TOKEN_KNOTS
    candidates = (tokens, WORK_KNOTS, PREFIX_KNOTS, ROW_KNOTS, KV_KNOTS)
    reach = x[own].max(axis=0) if own.any() else x.max(axis=0)
    knots = [
        np.array([0.0, *(k for k in wanted if k < x[:, j].max())])
        for j, wanted in enumerate(candidates)
    ]
    columns = [np.ones((len(x), 1))]
    columns += [_segments(x[:, j], knots[j]) for j in range(NUM_INPUTS)]
    solution = solve_nonnegative(np.hstack(columns), seconds, weights)
    curves: list[Curve] = []
    start = 1
    for j in range(NUM_INPUTS):
        slopes = solution[start : start + len(knots[j])]
        start += len(knots[j])
        curves.append(_curve(knots[j], slopes, float(reach[j])))
    return CurveSum(float(solution[0]), tuple(curves))


def solve_nonnegative(columns: Array, seconds: Array, weights: Array) -> Array:
    """Non-negative w that makes columns @ w close to seconds, in relative terms.

    Reduced by QR first, so that its cost depends little on the number of rows.
    """
    rows = columns * (weights / seconds)[:, None]
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0.0] = 1.0
    q, r = np.linalg.qr(rows / scale)
    return np.asarray(least_squares(r, q.T @ weights, maxiter=100 * rows.shape[1]) / scale)


def least_squares(a: Array, b: Array, *, maxiter: int) -> Array:
    """Non-negative x that makes a @ x closest to b.

    The active set of nearly dependent columns can cycle; an interior method then ends the
    search, slower and to about 1e-5 of the largest weight.
    """
    try:
        solution, _ = nnls(a, b, maxiter=maxiter)
    except RuntimeError:
        solution = lsq_linear(a, b, bounds=(0.0, np.inf)).x
    return np.asarray(np.maximum(solution, 0.0))


def _segments(x: Array, knots: Array) -> Array:
    """The part of `x` within each segment, shape (n, len(knots)); the last has no end."""
    ends = np.append(knots[1:], np.inf)
    return np.asarray(np.clip(x[:, None], knots, ends) - knots)


def _curve(knots: Array, slopes: Array, reach: float) -> Curve:
    """A curve through the fitted segments up to `reach`, and its tail beyond."""
    inner = knots < reach
    if not inner.any():
        return FLAT
    kept, steepness = knots[inner], slopes[inner]
    ends = np.append(kept[1:], reach)
    at_knots = np.concatenate([[0.0], np.cumsum(steepness * (ends - kept))])
    # Not the last segment's slope, which may be the edge of a tile.
    shares = np.array([0.5, 0.75])
    before_s = np.interp(shares * reach, np.append(kept, reach), at_knots)
    tail = float(np.max((at_knots[-1] - before_s) / ((1.0 - shares) * reach)))
    return _joined([*kept.tolist(), reach], at_knots.tolist(), [*steepness.tolist(), tail])


def _joined(starts: Sequence[float], values: Sequence[float], slopes: Sequence[float]) -> Curve:
    """The curve of these segments; neighbours of equal slope become one."""
    kept = [0, *(i for i, (a, b) in enumerate(pairwise(slopes), start=1) if a != b)]
    return Curve(
        knots=tuple(starts[i] for i in kept[1:]),
        offsets_s=tuple(values[i] - slopes[i] * starts[i] for i in kept),
        slopes_s=tuple(slopes[i] for i in kept),
    )
