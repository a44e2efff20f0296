"""What offline work may do within the impact that is left, iteration by iteration.

Beside online rows an iteration may take a little longer than without offline work; both times
are predictions of the same model, not bounds: what matters is how they differ, and the account
is charged with what was measured. While nobody is online the best iteration is the one with
most offline tokens per square of its length, since so much do arrivals wait for it. An iteration
that computes an online prompt has no offline part at all: a first token waits for it once, and
nothing is cheaper than to come back an iteration later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.plan import Reason, ReleaseCause
from echo_sglang.domain.snapshot import ImpactRoom, OfflineRow, OfflineRows, Snapshot
from echo_sglang.estimate.fine_times import FineTimes
from echo_sglang.estimate.step_time import StepTimeModel
from echo_sglang.policy.impact import StepImpact
from echo_sglang.policy.iteration import Iteration, Work
from echo_sglang.policy.preemption import decode_shape, rows_for_time
from echo_sglang.policy.settings import CoschedulerSettings

IDLE_FACTOR = 2.0
"""While nobody is online, rows that decode alone take at most so many times what one takes."""

LONE_ROW_FACTOR = 4.0
"""One row beside online ones may cost so many times what an iteration may: what it costs is not
divisible, and the account evens it out."""

CLOSENESS = 0.05
"""The best chunk is found to this share of its size: its worth is flat around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedTimes(StepTimeModel):
    """A model whose upper bounds are its predictions, as long as it has seen such batches; and
    those are of `fine` for the batches that it knows."""

    fine: FineTimes | None = None

    def predict(self, shape: BatchShape) -> float:
        """Expected seconds of one iteration; 0.0 while untrained."""
        if self.fine is not None and self.fine.knows(shape):
            return self.fine.predict(shape)
        return StepTimeModel.predict(self, shape)


def expected(model: StepTimeModel, fine: FineTimes | None) -> StepTimeModel:
    """`model` without its margins, and with what is known better. An untrained one stays so."""
    if not model.trained:
        return model
    known = {f.name: getattr(model, f.name) for f in fields(StepTimeModel) if f.init}
    sure = dict.fromkeys(("extend_log_factor", "decode_log_factor", "mixed_log_factor"), 0.0)
    return ExpectedTimes(**known | sure, fine=fine)


def fine_times(room: ImpactRoom) -> FineTimes | None:
    """What the account has learned of iterations without much prefill."""
    return FineTimes(room.times_s) if room.times_s else None


def step_impact(
    shape: BatchShape, online: BatchShape, seconds: float, model: StepTimeModel
) -> StepImpact:
    """What an iteration of `shape` that took `seconds` cost its `online` part.

    Its online part alone would have taken the same share of the measured as of the predicted
    time.
    """
    if not (online.has_extend or online.decode_rows):
        return StepImpact(seconds=seconds)
    online_s = model.predict(online)
    pace = seconds / max(model.predict(shape), 1e-9)
    alone_s = online_s * pace
    decode_s = alone_s if online.decode_rows else 0.0
    if online.decode_rows and online.has_extend:
        rows = BatchShape(decode_rows=online.decode_rows, decode_kv_tokens=online.decode_kv_tokens)
        decode_s = model.predict(rows)
    return StepImpact(
        seconds=seconds, alone_s=min(alone_s, seconds), decode_s=min(decode_s, seconds)
    )


def serves_online_prompt(snapshot: Snapshot) -> bool:
    """True if an online prompt waits or is half done."""
    chunk = snapshot.chunk
    return bool(snapshot.waiting_online) or (chunk is not None and chunk.is_online)


@dataclass(frozen=True, slots=True)
class WithinImpact:
    """See `policy/bound.py::Bound`. snapshot: has the room that the account leaves."""

    snapshot: Snapshot
    model: StepTimeModel
    settings: CoschedulerSettings

    joins_online: ClassVar[bool] = False
    held_reason: ClassVar[Reason | None] = Reason.NO_IMPACT
    release_cause: ClassVar[ReleaseCause] = ReleaseCause.IMPACT

    @classmethod
    def of(
        cls, snapshot: Snapshot, model: StepTimeModel, settings: CoschedulerSettings
    ) -> WithinImpact:
        """With the times that are expected; an online prompt is planned by `model` itself."""
        if not serves_online_prompt(snapshot):
            model = expected(model, fine_times(_room(snapshot)))
        return cls(snapshot, model, settings)

    @property
    def room(self) -> ImpactRoom:
        """What the account leaves."""
        return _room(self.snapshot)

    def rows_beyond(self, rows: OfflineRows) -> tuple[OfflineRow, ...]:
        """Rows that would slow online requests more than they may; all if none may run."""
        snapshot, model = self.snapshot, self.model
        releasable = tuple(row for row in rows if row.releasable)
        if not model.trained:
            return releasable if snapshot.online.rows or snapshot.waiting_online else ()
        budget_s = self.longest_s
        if not budget_s or (snapshot.online.rows and not self.room.longer_share):
            return releasable
        if model.upper(decode_shape(snapshot, rows)) <= budget_s:
            return ()
        beyond = rows_for_time(rows, snapshot, model, budget_s) or releasable
        if snapshot.online.rows and len(beyond) == len(rows):
            return self._all_but_one(releasable)
        return beyond

    def budget_s(self, iteration: Iteration) -> float:
        """As `longest_s`, whatever decodes."""
        return self.longest_s

    def row_room(self, iteration: Iteration, slots: int) -> int:
        """As many as the iteration may take longer. A half-done prompt becomes a row too."""
        snapshot, model = self.snapshot, self.model
        if not self._may_begin:
            return 0
        rows, kv_tokens = iteration.decode.decode_rows, iteration.decode.decode_kv_tokens
        chunk = snapshot.chunk
        if chunk is not None:
            rows += 1
            kv_tokens += chunk.prefix_tokens + chunk.remaining_tokens
        longest_s, room = self.longest_s, 0
        for candidate in snapshot.candidates[: max(slots, 0)]:
            rows += 1
            kv_tokens += candidate.prefix_tokens + candidate.extend_tokens
            grown = BatchShape(decode_rows=rows, decode_kv_tokens=kv_tokens)
            lone = snapshot.online.rows and rows == snapshot.online.rows + 1
            limit_s = self._longest_with_one_row_s if lone else longest_s
            if model.upper(grown) > limit_s or (snapshot.online.rows and model.extrapolates(grown)):
                break
            room += 1
        return room

    def chunk(self, iteration: Iteration, work: Work, budget_s: float, least: int) -> int:
        """Beside online rows the largest within `budget_s`, else the thriftiest."""
        online_rows = self.snapshot.online.rows
        if not self.model.trained:
            known = self.settings.safe_chunk_tokens
            return 0 if online_rows else min(iteration.chunk_cap(work), known)
        if not self._may_begin:
            return 0
        tokens = min(iteration.largest_chunk(work, budget_s), iteration.known_tokens())
        if online_rows:
            tokens = iteration.known_chunk(work, tokens)
        else:
            tokens = max(thriftiest_chunk(iteration, work, tokens), min(least, tokens))
        return tokens if tokens >= least else 0

    @property
    def longest_s(self) -> float:
        """Longest iteration that the room allows; 0.0 if no offline work may run."""
        snapshot, model, room = self.snapshot, self.model, self.room
        if serves_online_prompt(snapshot):
            return 0.0
        if snapshot.online.rows:
            return model.upper(decode_shape(snapshot, OfflineRows())) * (1.0 + room.longer_share)
        if room.waits_s2 <= 0.0:
            return 0.0
        single_s = model.upper(BatchShape(decode_rows=1, decode_kv_tokens=1))
        # One iteration never takes all that is ever saved, unless not even one row fits into it.
        return max(min(math.sqrt(2.0 * room.waits_s2), IDLE_FACTOR * single_s), 1.05 * single_s)

    @property
    def _longest_with_one_row_s(self) -> float:
        """Longest decode step that a single offline row beside online ones may make."""
        share = LONE_ROW_FACTOR * self.room.longer_share
        return self.model.upper(decode_shape(self.snapshot, OfflineRows())) * (1.0 + share)

    def _all_but_one(self, rows: tuple[OfflineRow, ...]) -> tuple[OfflineRow, ...]:
        """All of them if even one alone takes too long; else all but the one that is nearest its
        end among the most urgent."""
        by_value = sorted(rows, key=lambda row: (-row.urgency, row.remaining_tokens))
        kept = decode_shape(self.snapshot, OfflineRows.of(by_value[:1]))
        fits = self.model.upper(kept) <= self._longest_with_one_row_s
        return tuple(by_value[1:]) if fits else rows

    @property
    def _may_begin(self) -> bool:
        if serves_online_prompt(self.snapshot):
            return False
        room = self.room
        return room.begins if self.snapshot.online.rows else room.waits_s2 > 0.0


def thriftiest_chunk(iteration: Iteration, work: Work, most: int) -> int:
    """The chunk of at most `most` tokens with most offline tokens per square of the time.

    Tokens over the square rise and then fall: time grows at least in proportion.
    """
    rows = iteration.decode.decode_rows

    def worth(tokens: int) -> float:
        return (rows + tokens) / max(iteration.seconds(work, tokens), 1e-9) ** 2

    low, high = min(1, most), most
    while high - low > max(2, CLOSENESS * low):
        third = (high / low) ** (1.0 / 3.0)
        left = min(max(round(low * third), low + 1), high - 2)
        right = min(max(round(low * third * third), left + 1), high - 1)
        if worth(left) < worth(right):
            low = left
        else:
            high = right
    return max(range(low, high + 1), key=worth) if high - low <= 2 else high


def _room(snapshot: Snapshot) -> ImpactRoom:
    assert snapshot.impact is not None
    return snapshot.impact
