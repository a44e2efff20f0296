"""Which waiting lines come next, over all batches of a runner."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from echo_sglang.service.model import Line
from echo_sglang.service.prefix_key import end_of_group, group_of
from echo_sglang.service.work_table import WorkTable

_MAX_RIDER_BATCHES = 8
_SPARE_S = 60.0
_SPARE_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a batch is: its deadline and the lines that have no result."""

    batch_id: str
    created_at: float
    expires_at: float
    open_lines: int


def in_turn(standings: Iterable[Standing], now: float, lines_per_s: float | None) -> list[str]:
    """Batches in the order in which they get the engine.

    First those that would otherwise miss their deadline, the earliest one first: the time
    left less the work left at `lines_per_s` (None: not known) is under a minute, or a tenth of
    what is left. Then the one with the fewest lines left, which makes the mean wait shortest;
    large batches do not starve, as they become urgent in time.
    """

    def rank(standing: Standing) -> tuple[int, float, float, str]:
        left_s = standing.expires_at - now
        work_s = standing.open_lines / lines_per_s if lines_per_s else 0.0
        if left_s - work_s < max(_SPARE_S, _SPARE_SHARE * left_s):
            return 0, standing.expires_at, standing.created_at, standing.batch_id
        return 1, standing.open_lines, standing.created_at, standing.batch_id

    return [standing.batch_id for standing in sorted(standings, key=rank)]


def draw(work: WorkTable, turn: Sequence[str], size: int, max_crashes: int) -> list[Line]:
    """The next lines, at most `size`, sorted so that shared prefixes are together.

    They come from the first batch in turn that has any waiting. Lines of other batches that
    share a prompt's beginning with them ride along, at most as many: their common prefix is
    computed once. Lines with more crashes than `max_crashes` are left out.
    """
    for place, batch_id in enumerate(turn):
        lines = list(work.waiting(batch_id, size, max_crashes=max_crashes))
        if not lines:
            continue
        others = [other for other in turn[place + 1 :] if other != batch_id]
        riders = _riders(work, lines, others[:_MAX_RIDER_BATCHES], size // 2, max_crashes)
        lines = lines[: size - len(riders)] + riders
        return sorted(lines, key=lambda line: (line.order_key, line.batch_id, line.number))
    return []


def _riders(
    work: WorkTable, lines: Sequence[Line], others: Sequence[str], size: int, max_crashes: int
) -> list[Line]:
    groups = {group_of(line.order_key) for line in lines[: (len(lines) + 1) // 2]}
    riders: list[Line] = []
    for other in others:
        room = min(size, len(lines)) - len(riders)
        if room <= 0:
            break
        found = work.waiting(
            other, room, low=min(groups), high=end_of_group(max(groups)), max_crashes=max_crashes
        )
        riders += [line for line in found if group_of(line.order_key) in groups]
    return riders


class Pace:
    """How fast results come, forgetting by halves every `half_life_s`."""

    __slots__ = ("_amount", "_began_s", "_half_life_s", "_last_s")

    def __init__(self, now: float, half_life_s: float = 60.0) -> None:
        self._began_s = now
        self._last_s = now
        self._amount = 0.0
        self._half_life_s = half_life_s

    def add(self, lines: int, now: float) -> None:
        """So many more results."""
        self._amount = self._faded(now) + lines
        self._last_s = max(self._last_s, now)

    def lines_per_s(self, now: float) -> float | None:
        """None until the first results, and in the first second."""
        seen_s = now - self._began_s
        if seen_s < 1.0 or not self._amount:
            return None
        mean_age_s = self._half_life_s / math.log(2)
        window_s = mean_age_s * (1.0 - math.exp2(-seen_s / self._half_life_s))
        return self._faded(now) / window_s

    def _faded(self, now: float) -> float:
        return self._amount * math.exp2(-max(now - self._last_s, 0.0) / self._half_life_s)
