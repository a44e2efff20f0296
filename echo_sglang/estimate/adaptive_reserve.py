"""The burst reserve from what is known of the running rows and what was seen of arrivals.

Known part: every running online row holds its KV exactly, and the survival table of output
lengths says how likely it still runs at the end of the horizon; summed, that is the expected
change of the KV of today's rows (mostly a fall: rows end and free all they hold).

Arrivals part: past moments tell by how much online KV then rose within the horizon. A straight
line through (known part, increment) is taken out, with a slope that is learned, because busy
phases may mean that much KV is about to be freed or that a burst is going on. Of what remains, a
quantile is taken among the moments whose known part was nearest to that of now.

Coverage: the quantile's level follows the violations that really happened (adaptive conformal
inference, Gibbs and Candès, arXiv 2106.00170), so that their rate becomes the wanted one under
drift too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from echo_sglang.estimate.increments import LookedTime, OpenOrigins, conformal_rank
from echo_sglang.estimate.kv_demand import RowSource, RunningOnline, enough_samples, nobody
from echo_sglang.estimate.output_length import LONGEST_TOKENS, SurvivalTable
from echo_sglang.estimate.settings import require, require_horizon, require_limits

SAMPLES = 2048
"""Past moments kept, evenly spaced over the window."""

NEAREST_SHARE = 0.5
"""Share of the past moments that are compared with now."""

FEWEST_NEAR = 64

GAIN_PER_HORIZON = 0.04
"""How far the level moves in one horizon of violations only, as a share of all levels."""

REFRESHES_PER_HORIZON = 20
LONGEST_REFRESH_S = 0.25
LEVEL_RANGE = 8.0
"""The level stays between the wanted violation rate divided by this and multiplied by it."""

Floats = NDArray[np.float64]


class _Issued(NamedTuple):
    """What was forecast at an origin: the known part and the increment that should suffice."""

    known_tokens: float
    enough_tokens: float


class AdaptiveReserve:
    """Known part and arrivals part, with adaptive coverage. A `KvDemandForecast`.

    A new forecast is made REFRESHES_PER_HORIZON times a horizon, and every LONGEST_REFRESH_S at
    least, as far as there are observations: O(running rows) and O(SAMPLES) in numpy. SAMPLES
    moments of the window are kept. Until `enough_samples` of them are known, the reserve is the
    ceiling.

    lengths: learned elsewhere, from every finished online request. violation_rate: share of
    moments after which online KV may rise by more than the reserve, 0.001 to 0.5. Raises
    ConfigError for it, and for the rest as `WindowQuantileReserve` does.
    """

    __slots__ = (
        "_ceiling_tokens",
        "_enough",
        "_floor_tokens",
        "_forecast",
        "_forecast_at_s",
        "_gain",
        "_held_tokens",
        "_history",
        "_horizon_s",
        "_lengths",
        "_level",
        "_next_origin_s",
        "_open",
        "_refresh_s",
        "_spacing_s",
        "_time",
        "_violation_rate",
    )

    def __init__(
        self,
        *,
        lengths: SurvivalTable,
        horizon_s: float,
        window_s: float,
        floor_tokens: int,
        ceiling_tokens: int,
        violation_rate: float = 0.05,
    ) -> None:
        require_horizon(horizon_s, window_s)
        allowed = "0.001 to 0.5"
        require("violation_rate", violation_rate, 0.001 <= violation_rate <= 0.5, allowed)
        require_limits(floor_tokens, ceiling_tokens)
        self._lengths = lengths
        self._horizon_s = horizon_s
        self._spacing_s = window_s / SAMPLES
        self._refresh_s = min(horizon_s / REFRESHES_PER_HORIZON, LONGEST_REFRESH_S)
        self._gain = GAIN_PER_HORIZON * min(self._spacing_s / horizon_s, 1.0)
        self._violation_rate = violation_rate
        self._floor_tokens = floor_tokens
        self._ceiling_tokens = ceiling_tokens
        self._enough = enough_samples(horizon_s, self._spacing_s, violation_rate)
        self._time = LookedTime(longest_pause_s=horizon_s + self._spacing_s)
        self._open: OpenOrigins[_Issued] = OpenOrigins(horizon_s=horizon_s)
        self._history = History()
        self._held_tokens = 0
        self._level = violation_rate
        self._forecast = math.inf
        self._forecast_at_s = -math.inf
        self._next_origin_s = 0.0

    @property
    def level(self) -> float:
        """The violation rate now asked of the quantile so that the wanted one comes out."""
        return self._level

    def observe(self, now_s: float, online_tokens: int, running: RowSource = nobody) -> None:
        """See `KvDemandForecast`."""
        if not self._time.advance(now_s):
            return
        for increment, issued in self._open.close(self._time.elapsed_s):
            self._history.add(issued.known_tokens, increment)
            if math.isfinite(issued.enough_tokens):
                self._follow(violated=increment > issued.enough_tokens)
        self._held_tokens = max(online_tokens, 0)
        self._open.observe(self._held_tokens)
        if self._time.elapsed_s >= self._forecast_at_s + self._refresh_s:
            self._refresh(running())

    def reserve_tokens(self, now_s: float) -> int:
        """See `KvDemandForecast`."""
        if not math.isfinite(self._forecast):
            return self._ceiling_tokens
        wanted = math.ceil(self._forecast)
        return min(max(wanted, self._floor_tokens), self._ceiling_tokens)

    def _refresh(self, running: RunningOnline) -> None:
        elapsed_s = self._time.elapsed_s
        known = expected_change(running, self._lengths, self._horizon_s)
        self._forecast = self._increment_for(known)
        self._forecast_at_s = elapsed_s
        if elapsed_s >= self._next_origin_s:
            self._open.open(elapsed_s, self._held_tokens, _Issued(known, self._forecast))
            self._next_origin_s = elapsed_s + self._spacing_s

    def _increment_for(self, known: float) -> float:
        """The increment that is exceeded at the current level; infinite while too little was
        seen."""
        if len(self._history) < self._enough:
            return math.inf
        return max(self._history.quantile_near(known, 1.0 - self._level), 0.0)

    def _follow(self, *, violated: bool) -> None:
        level = self._level + self._gain * (self._violation_rate - float(violated))
        lowest = self._violation_rate / LEVEL_RANGE
        highest = min(self._violation_rate * LEVEL_RANGE, 0.5)
        self._level = min(max(level, lowest), highest)


def expected_change(running: RunningOnline, lengths: SurvivalTable, horizon_s: float) -> float:
    """Expected KV tokens of today's rows at the end of the horizon, minus what they hold now.

    0 without rows, and while the time of a step is not known.
    """
    if not running.rows or not running.step_s > 0.0:
        return 0.0
    steps = math.floor(min(horizon_s / running.step_s, LONGEST_TOKENS))
    kv, produced, max_new = np.array(running.rows, dtype=np.float64).T
    at_end = lengths.log_survival(produced + steps)
    runs_on = np.exp(at_end - lengths.log_survival(produced))
    runs_on[produced + steps >= max_new] = 0.0
    return float(runs_on @ (kv + steps) - kv.sum())


class History:
    """The last SAMPLES pairs of known part and increment that followed, in tokens."""

    __slots__ = ("_added", "_increments", "_known")

    def __init__(self) -> None:
        self._known: Floats = np.zeros(SAMPLES)
        self._increments: Floats = np.zeros(SAMPLES)
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, SAMPLES)

    def add(self, known: float, increment: int) -> None:
        """Take a pair in; the oldest goes once there are SAMPLES."""
        place = self._added % SAMPLES
        self._known[place] = known
        self._increments[place] = increment
        self._added += 1

    def quantile_near(self, known: float, share: float) -> float:
        """The increment that a share of those after a known part like this one stayed below.

        Increments are moved along their regression line to `known`, the nearest are kept, and
        the one of rank `conformal_rank` is returned. May be negative. IndexError if empty.
        """
        n = len(self)
        seen, increments = self._known[:n], self._increments[:n]
        around_mean = seen - seen.mean()
        spread = float(around_mean @ around_mean)
        slope = float(around_mean @ increments) / spread if spread > 0.0 else 0.0
        moved = increments + slope * (known - seen)
        near = max(math.ceil(NEAREST_SHARE * n), min(n, FEWEST_NEAR))
        if near < n:
            moved = moved[np.argpartition(np.abs(seen - known), near - 1)[:near]]
        rank = conformal_rank(share, len(moved))
        return float(np.partition(moved, rank - 1)[rank - 1])
