"""What offline work may do within the SLOs of online requests, iteration by iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.plan import Reason, ReleaseCause
from echo_sglang.domain.snapshot import OfflineRow, OfflineRows, Snapshot
from echo_sglang.estimate.step_time import StepTimeModel
from echo_sglang.policy.iteration import Iteration, Work, largest
from echo_sglang.policy.preemption import decode_shape, rows_for_time
from echo_sglang.policy.settings import CoschedulerSettings
from echo_sglang.policy.slack import arrival_guard, decode_budget, sustainable_step

ALONE_FACTOR = 1.25
"""A decode step may always take so many times what it takes without offline rows: sending the last
ones away would gain little."""


@dataclass(frozen=True, slots=True)
class WithinSlos:
    """See `policy/bound.py::Bound`."""

    snapshot: Snapshot
    model: StepTimeModel
    settings: CoschedulerSettings

    joins_online: ClassVar[bool] = True
    held_reason: ClassVar[Reason | None] = None

    @property
    def release_cause(self) -> ReleaseCause:
        """Time is short, or unknown."""
        return ReleaseCause.TIME if self.model.trained else ReleaseCause.SAFE_MODE

    def rows_beyond(self, rows: OfflineRows) -> tuple[OfflineRow, ...]:
        """Rows that online ones cannot afford; all of them while nothing can be predicted."""
        model = self.model
        if not self.snapshot.online.rows:
            return ()
        if not model.trained:
            return tuple(row for row in rows if row.releasable)
        alone_s = model.upper(decode_shape(self.snapshot, OfflineRows()))
        floor_s = max(sustainable_step(self.snapshot, self.settings.slo), ALONE_FACTOR * alone_s)
        return rows_for_time(rows, self.snapshot, model, floor_s)

    def budget_s(self, iteration: Iteration) -> float:
        """Until the next online token is due, and so that a burst arriving now is not late."""
        burst, decode = self.snapshot.typical_burst_tokens, iteration.decode
        burst_s = self.model.predict(decode.with_chunk(burst, 0) if burst else decode)
        guard_s = arrival_guard(burst_s, self.settings.slo) / self.snapshot.delivery_steps
        return min(decode_budget(self.snapshot), guard_s)

    def row_room(self, iteration: Iteration, slots: int) -> int:
        """As many as decode in the share of the TPOT SLO that leaves a chunk its time."""
        model, decode = self.model, iteration.decode
        limit_s = self.settings.decode_share * self.settings.slo.tpot_slo_s
        rows = decode.decode_rows
        mean_kv = decode.decode_kv_tokens // rows if rows else 0
        guarded = self.snapshot.online.rows > 0

        def fits(more: int) -> bool:
            grown = BatchShape(
                decode_rows=rows + more,
                decode_kv_tokens=decode.decode_kv_tokens + more * mean_kv,
            )
            if guarded and model.extrapolates(grown):
                return False
            return model.predict(grown) <= limit_s

        room = largest(min(slots, len(self.snapshot.candidates)), fits)
        alone = rows == 0 and slots > 0
        return max(room, 1 if alone else 0)

    def chunk(self, iteration: Iteration, work: Work, budget_s: float, least: int) -> int:
        """The largest within `budget_s`.

        A small chunk may cost online rows nearly as much as a large one; decode-only
        iterations meanwhile gain the slack that a larger one then uses better.
        """
        online_rows, settings = self.snapshot.online.rows, self.settings
        if not self.model.trained:
            known = max(settings.safe_chunk_tokens, iteration.known_tokens())
            return 0 if online_rows else min(iteration.chunk_cap(work), known)
        tokens = min(iteration.largest_chunk(work, budget_s), iteration.known_tokens())
        if not online_rows:
            # Nobody is delayed now, and a model that is wrong is corrected only by running.
            return max(tokens, least)
        tokens = iteration.known_chunk(work, tokens)
        if tokens < least:
            return 0
        efficient = iteration.is_efficient(work, tokens, settings.min_chunk_efficiency)
        return tokens if efficient else 0
