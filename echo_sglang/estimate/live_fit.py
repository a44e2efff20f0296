"""The live fit: recent iterations of every regime, and weights that explain them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from echo_sglang.domain.batch import Regime

Array = NDArray[np.float64]

PROFILE_PRIOR = 4.0
"""Iterations that the last weight of the profile counts like against new ones."""
NEWEST = 24
"""Iterations of each regime that set the pace."""


class _Window:
    """The newest `size` rows in order of time, without moving them at every addition.

    Those added since somebody looked wait as they are: every iteration adds one, and one in a
    dozen looks.
    """

    def __init__(self, size: int, columns: int) -> None:
        self._size = size
        self._rows = np.empty((2 * size, columns))
        self._seconds = np.empty(2 * size)
        self._start = self._end = 0
        self._new_rows: list[tuple[float, ...]] = []
        self._new_seconds: list[float] = []

    def __len__(self) -> int:
        return min(self._end - self._start + len(self._new_rows), self._size)

    def add(self, row: tuple[float, ...], seconds: float) -> None:
        self._new_rows.append(row)
        self._new_seconds.append(seconds)
        if len(self._new_rows) == self._size:
            self._take_in()

    def scale_older(self, factor: float, *, newer: int) -> None:
        self._take_in()
        self._seconds[self._start : max(self._end - newer, self._start)] *= factor

    def newest(self, count: int) -> tuple[Array, Array]:
        self._take_in()
        kept = slice(max(self._start, self._end - count), self._end)
        return self._rows[kept], self._seconds[kept]

    def values(self) -> tuple[Array, Array]:
        self._take_in()
        return self._values()

    def _take_in(self) -> None:
        count = len(self._new_rows)
        if not count:
            return
        if self._end + count > len(self._rows):
            self._move_to_front()
        self._rows[self._end : self._end + count] = self._new_rows
        self._seconds[self._end : self._end + count] = self._new_seconds
        self._end += count
        self._start = max(self._start, self._end - self._size)
        self._new_rows.clear()
        self._new_seconds.clear()

    def _values(self) -> tuple[Array, Array]:
        kept = slice(self._start, self._end)
        return self._rows[kept], self._seconds[kept]

    def _move_to_front(self) -> None:
        rows, seconds = self._values()
        count = len(rows)
        self._rows[:count] = rows.copy()
        self._seconds[:count] = seconds.copy()
        self._start, self._end = 0, count


class LiveFit:
    """The last `window` iterations of each regime and non-negative weights fitted to them.

    A long decode-only phase thus does not make it forget prefill; within a regime an
    iteration counts half as much as one `half_life` iterations younger.
    profiled: the last column is the time that a profile predicts.
    """

    def __init__(self, *, columns: int, window: int, half_life: int, profiled: bool) -> None:
        self._windows = {regime: _Window(window, columns) for regime in Regime}
        self._half_life = half_life
        self._profiled = profiled

    def add(self, regime: Regime, row: tuple[float, ...], seconds: float) -> None:
        """Remember one iteration."""
        self._windows[regime].add(row, seconds)

    def scale_older(self, factor: float, *, newer: dict[Regime, int]) -> None:
        """Take iterations before the newest `newer` as if they had taken `factor` times as long.

        The best guess of what they would take now, until they are measured again.
        """
        for regime, window in self._windows.items():
            window.scale_older(factor, newer=newer[regime])

    @property
    def one_sided(self) -> bool:
        """True while only prefill or only decode was seen."""
        decode = len(self._windows[Regime.DECODE])
        mixed = len(self._windows[Regime.MIXED])
        return not (mixed or (decode and len(self._windows[Regime.EXTEND])))

    def weights(self, last_profile_weight: float) -> tuple[float, ...] | None:
        """One weight per column; None if the iterations do not determine any.

        Relative errors are minimised. Solved on the normal equations, so that the cost
        beyond one product does not grow with the window.
        """
        gram, target = self._normal_equations()
        count = len(target)
        if self._profiled:
            # What the profile explains stays explained by it.
            gram[np.diag_indices(count - 1)] *= 1.0 + PROFILE_PRIOR / self._total_weight()
            gram[-1, -1] += PROFILE_PRIOR
            target[-1] += PROFILE_PRIOR * last_profile_weight
        scale = np.sqrt(np.diag(gram))
        scale[scale == 0.0] = 1.0
        scaled = gram / np.outer(scale, scale)
        try:
            lower = np.linalg.cholesky(scaled + 1e-9 * np.eye(count))
            solution, _ = nnls(lower.T, np.linalg.solve(lower, target / scale))
        except (np.linalg.LinAlgError, RuntimeError):
            return None
        weights = self._at_present_pace(solution / scale)
        return tuple(weights.tolist()) if np.isfinite(weights).all() and weights.any() else None

    def _at_present_pace(self, weights: Array) -> Array:
        """Scaled so that the newest iterations are neither over- nor under-predicted.

        What a server costs changes as a whole (clocks, neighbours) sooner than in its parts,
        and the windows are long so that the parts can be told apart.
        """
        newest = [window.newest(NEWEST) for window in self._windows.values()]
        rows = np.concatenate([rows for rows, _ in newest])
        seconds = np.concatenate([seconds for _, seconds in newest])
        predicted = rows @ weights
        known = predicted > 0.0
        if not known.any():
            return weights
        return np.asarray(weights * np.median(seconds[known] / predicted[known]))

    def _normal_equations(self) -> tuple[Array, Array]:
        gram: Array | float = 0.0
        target: Array | float = 0.0
        for window in self._windows.values():
            rows, seconds = window.values()
            recency = self._recency(len(window))
            relative = rows * (recency / seconds)[:, None]
            gram = gram + relative.T @ relative
            target = target + relative.T @ recency
        return np.asarray(gram), np.asarray(target)

    def _recency(self, count: int) -> Array:
        return np.asarray(0.5 ** (np.arange(count, 0, -1) / (2.0 * self._half_life)))

    def _total_weight(self) -> float:
        return max(
            float(sum((self._recency(len(w)) ** 2).sum() for w in self._windows.values())), 1.0
        )
