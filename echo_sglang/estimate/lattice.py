"""A bounded local correction: log of measured over fitted time, on a sparse lattice.

Its axes are decode rows, KV tokens per row and the fitted time itself, all logarithmic. A
chunk added to a batch moves it along the last axis only, and there the correction falls by
no more than the fitted time rises: the corrected time stays monotone in the chunk. Nodes
without data near them are zero, so the correction fades within a cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.sparse import coo_array, eye_array, vstack
from scipy.sparse.linalg import lsmr

Array = NDArray[np.float64]
Node = tuple[int, int, int]

MAX_LOG_RATIO = math.log(2.0)
CELLS_PER_OCTAVE = 4
"""Of fitted time; rows and KV per row have one cell an octave."""
MAX_FALL = math.log(2.0) / CELLS_PER_OCTAVE
"""A correction that falls by this from one node to the next keeps the time constant."""
SMOOTHNESS, SHRINKAGE = 0.4, 0.1
"""How much a difference between neighbours, and a value, weigh against one measurement."""
_ROW_STRIDE, _KV_STRIDE, _OFFSET = 1 << 40, 1 << 20, 1 << 19


@dataclass(frozen=True, slots=True)
class Lattice:
    """Log ratios at nodes (rows, KV per row, fitted time), in cells."""

    nodes: Mapping[Node, float]
    _by_key: dict[int, float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        keyed = {_key(node): value for node, value in self.nodes.items()}
        object.__setattr__(self, "_by_key", keyed)

    def log_ratio(self, rows: float, kv_tokens: float, fitted_s: float) -> float:
        """The correction, trilinear between nodes; 0.0 where nothing was measured."""
        if not self._by_key or fitted_s <= 0.0:
            return 0.0
        log2 = math.log2
        x = log2(rows + 0.5) + 1.0
        y = log2(kv_tokens / rows + 64.0) - 6.0 if rows else 0.0
        z = CELLS_PER_OCTAVE * log2(fitted_s)
        i, j, k = math.floor(x), math.floor(y), math.floor(z)
        x -= i
        y -= j
        z -= k
        get = self._by_key.get
        key = i * _ROW_STRIDE + j * _KV_STRIDE + k + _OFFSET
        low = high = 0.0
        for weight, corner in (
            ((1.0 - x) * (1.0 - y), key),
            ((1.0 - x) * y, key + _KV_STRIDE),
            (x * (1.0 - y), key + _ROW_STRIDE),
            (x * y, key + _ROW_STRIDE + _KV_STRIDE),
        ):
            if weight:
                low += weight * get(corner, 0.0)
                high += weight * get(corner + 1, 0.0)
        return low + z * (high - low)


NO_CORRECTION = Lattice({})


def fit_lattice(rows: Array, kv_tokens: Array, fitted_s: Array, log_ratios: Array) -> Lattice:
    """Smooth `log_ratios` (n,), bounded to [1/2, 2], onto the nodes around the data."""
    if not len(rows):
        return NO_CORRECTION
    points = _coordinates(rows, kv_tokens, fitted_s)
    bounded = np.clip(log_ratios, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    nodes, corners, weights = _corners(points)
    n, m = len(points), len(nodes)
    sample = np.repeat(np.arange(n), 8)
    measured = coo_array((weights.ravel(), (sample, corners.ravel())), shape=(n, m))
    system = vstack([measured, _differences(nodes), SHRINKAGE * eye_array(m)]).tocsr()
    target = np.zeros(system.shape[0])
    target[:n] = bounded
    values = np.clip(lsmr(system, target, maxiter=300)[0], -MAX_LOG_RATIO, MAX_LOG_RATIO)
    mass = np.bincount(corners.ravel(), weights=weights.ravel(), minlength=m).astype(float)
    return Lattice(_monotone(nodes, values, mass))


def _coordinates(rows: Array, kv_tokens: Array, fitted_s: Array) -> Array:
    per_row = np.divide(kv_tokens, rows, out=np.zeros_like(rows), where=rows > 0)
    return np.column_stack(
        [
            np.log2(rows + 0.5) + 1.0,
            np.where(rows > 0, np.log2(per_row + 64.0) - 6.0, 0.0),
            CELLS_PER_OCTAVE * np.log2(fitted_s),
        ]
    )


def _corners(points: Array) -> tuple[list[Node], NDArray[np.int64], Array]:
    """Nodes around the points; for each point the 8 around it and their weights."""
    base = np.floor(points).astype(np.int64)
    offset = np.array(list(product((0, 1), repeat=3)))
    share = points - base
    weights = np.prod(np.where(offset, share[:, None, :], 1.0 - share[:, None, :]), axis=2)
    around = (base[:, None, :] + offset).reshape(-1, 3)
    unique, index = np.unique(around, axis=0, return_inverse=True)
    nodes: list[Node] = [(int(i), int(j), int(k)) for i, j, k in unique]
    return nodes, index.reshape(-1, 8), weights


def _differences(nodes: list[Node]) -> coo_array:
    """One row per pair of neighbouring nodes: their difference."""
    index = {node: n for n, node in enumerate(nodes)}
    pairs = [
        (n, index[neighbour])
        for (i, j, k), n in index.items()
        for neighbour in ((i + 1, j, k), (i, j + 1, k), (i, j, k + 1))
        if neighbour in index
    ]
    rows = np.repeat(np.arange(len(pairs)), 2)
    signs = np.tile([SMOOTHNESS, -SMOOTHNESS], len(pairs))
    columns = np.array(pairs, dtype=np.int64).ravel()
    return coo_array((signs, (rows, columns)), shape=(len(pairs), len(nodes)))


def _monotone(nodes: list[Node], values: Array, mass: Array) -> dict[Node, float]:
    """Nodes whose value falls by at most `MAX_FALL` a step along the fitted time.

    Also into and out of the zero around them: nodes are added until it is reached.
    """
    columns: dict[tuple[int, int], dict[int, tuple[float, float]]] = {}
    for (i, j, k), value, weight in zip(nodes, values, mass, strict=True):
        columns.setdefault((i, j), {})[k] = (float(value), float(weight))
    result: dict[Node, float] = {}
    for (i, j), column in columns.items():
        for k, value in _monotone_column(column).items():
            result[i, j, k] = value
    return result


def _monotone_column(column: dict[int, tuple[float, float]]) -> dict[int, float]:
    steps = int(MAX_LOG_RATIO / MAX_FALL) + 1
    ks = range(min(column) - steps, max(column) + steps + 1)
    value, weight = np.array([column.get(k, (0.0, 0.0)) for k in ks]).T
    # Where nothing was measured zero is wanted, but less than any measurement.
    rising = value + MAX_FALL * np.arange(len(ks))
    fitted = isotonic_regression(rising, weights=weight + 1e-3).x
    fixed = np.clip(fitted - MAX_FALL * np.arange(len(ks)), -MAX_LOG_RATIO, MAX_LOG_RATIO)
    return {k: float(v) for k, v in zip(ks, fixed, strict=True) if abs(v) > 1e-12}


def _key(node: Node) -> int:
    i, j, k = node
    return i * _ROW_STRIDE + j * _KV_STRIDE + k + _OFFSET
