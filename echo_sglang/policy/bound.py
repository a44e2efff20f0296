"""What keeps offline work from hurting online requests: their SLOs, or how much slower they get.

Whatever differs between the two is behind one interface; a decision asks it and goes on.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from echo_sglang.domain.plan import Reason, ReleaseCause
from echo_sglang.domain.snapshot import OfflineRow, OfflineRows, Snapshot
from echo_sglang.estimate.step_time import StepTimeModel
from echo_sglang.policy.impact_room import WithinImpact
from echo_sglang.policy.iteration import Iteration, Work
from echo_sglang.policy.settings import CoschedulerSettings
from echo_sglang.policy.slo_room import WithinSlos


class Bound(Protocol):
    """The bound of one decision.

    joins_online: offline prompts may run in an iteration that computes an online one.
    held_reason: why offline prompts do not run when it leaves them nothing; None if that may
    have several reasons.
    """

    joins_online: ClassVar[bool]
    held_reason: ClassVar[Reason | None]

    @property
    def model(self) -> StepTimeModel:
        """What iterations take, as far as this bound wants to be sure of it."""

    @property
    def release_cause(self) -> ReleaseCause:
        """Why the rows of `rows_beyond` give way."""

    def rows_beyond(self, rows: OfflineRows) -> tuple[OfflineRow, ...]:
        """Offline rows that it leaves no time for."""

    def budget_s(self, iteration: Iteration) -> float:
        """Longest iteration with an offline part."""

    def row_room(self, iteration: Iteration, slots: int) -> int:
        """How many of the candidates, in order, may become rows. slots: of the server."""

    def chunk(self, iteration: Iteration, work: Work, budget_s: float, least: int) -> int:
        """Tokens of an offline chunk of `work`; 0 if none of at least `least` is worth its time."""


def bound_of(snapshot: Snapshot, model: StepTimeModel, settings: CoschedulerSettings) -> Bound:
    """The one that the server was told to keep."""
    if snapshot.impact is None:
        return WithinSlos(snapshot, model, settings)
    return WithinImpact.of(snapshot, model, settings)
