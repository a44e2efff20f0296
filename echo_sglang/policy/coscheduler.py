"""The decision of one iteration: online first, offline in the time and KV they leave.

From the batch of the last iteration a few plans are drafted (`drafts.py`), weighed and
compared by what they advance per second (`plans.py`), as in Echo (arXiv 2504.03651).
"""

from __future__ import annotations

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.plan import PlanKind, PlanOption, Reason, ReleaseCause, StepPlan
from echo_sglang.domain.snapshot import OfflineRow, OfflineRows, Snapshot, WaitingOnline
from echo_sglang.estimate.step_time import StepTimeModel
from echo_sglang.policy.admission import Admission
from echo_sglang.policy.bound import Bound, bound_of
from echo_sglang.policy.drafts import Drafting
from echo_sglang.policy.iteration import Iteration
from echo_sglang.policy.plans import Draft, best_of, option_of
from echo_sglang.policy.preemption import (
    decode_shape,
    online_shortage,
    rows_for_reserve,
    rows_for_shortage,
)
from echo_sglang.policy.settings import CoschedulerSettings
from echo_sglang.policy.slack import in_deadline_order

Rows = tuple[OfflineRow, ...]


def decide(snapshot: Snapshot, model: StepTimeModel, settings: CoschedulerSettings) -> StepPlan:
    """Plan one iteration. Pure: the same arguments give the same plan.

    Online prompts come first, earliest deadline first. Offline rows are released when
    online requests lack KV, slots or time, the fewest that suffice. Offline prompts fill what
    the SLOs leave, by the plan that advances most offline work per second.
    """
    bound = bound_of(snapshot, model, settings)
    model = bound.model
    waiting = _online_order(snapshot, model)
    released, cause = _giving_way(snapshot, bound)
    kept = _without(snapshot.offline_rows, released)
    iteration = Iteration(snapshot, model, decode_shape(snapshot, kept))
    admission = Admission(iteration, bound)
    drafting = Drafting(iteration, bound, admission, settings, released)
    online_first = waiting or (snapshot.chunk is not None and snapshot.chunk.is_online)
    drafts = drafting.for_online(waiting) if online_first else drafting.beside_nobody_waiting()
    options = [
        option_of(draft, snapshot, kept, len(released), iteration.seconds(draft.work, draft.tokens))
        for draft in drafts
    ]
    best = best_of(options, snapshot.last_chunk_tokens, settings.equal_rate_share)
    draft = drafts[best]
    reason = _online_reason(draft) if online_first else _offline_reason(drafts, best, admission)
    return StepPlan(
        reason=reason,
        chunk_tokens=draft.tokens,
        offline_tokens=draft.offline_tokens,
        chunk_limit_tokens=draft.chunk_limit,
        reserve_tokens=admission.reserve_tokens() if draft.offline else 0,
        online_order=tuple(w.rid for w in draft.online),
        offline_order=tuple(c.rid for c in draft.offline),
        release=tuple(row.rid for row in released),
        release_cause=cause,
        chunk_action=draft.action,
        budget_s=draft.budget_s,
        predicted_s=options[best].seconds,
        kind=draft.kind,
        options=(*_refused(snapshot, model, released), *options),
    )


def _giving_way(snapshot: Snapshot, bound: Bound) -> tuple[Rows, ReleaseCause | None]:
    """The fewest offline rows that must go, and why; the gravest cause if there are several."""
    rows = snapshot.offline_rows
    if not rows:
        return (), None
    cause = ReleaseCause.SHORTAGE
    released = rows_for_shortage(rows, online_shortage(snapshot))
    if not released:
        cause = ReleaseCause.RESERVE
        released = rows_for_reserve(rows, snapshot.memory)
    costly = bound.rows_beyond(_without(rows, released))
    if costly and not released:
        cause = bound.release_cause
    released += costly
    return released, cause if released else None


def _refused(snapshot: Snapshot, model: StepTimeModel, released: Rows) -> tuple[PlanOption, ...]:
    """What keeping all rows would have meant, if some give way."""
    if not released:
        return ()
    rows = snapshot.offline_rows
    keep = PlanOption(
        kind=PlanKind.KEEP,
        chunk_tokens=0,
        released=0,
        benefit_tokens=sum(rows.urgencies),
        seconds=model.upper(decode_shape(snapshot, rows)),
        feasible=False,
    )
    return (keep,)


def _online_reason(draft: Draft) -> Reason:
    return Reason.ONLINE_WITH_OFFLINE if draft.offline else Reason.ONLINE_PREFILL


def _offline_reason(drafts: list[Draft], best: int, admission: Admission) -> Reason:
    """Why offline prompts run, or do not."""
    iteration = admission.iteration
    snapshot, trained = iteration.snapshot, iteration.model.trained
    if drafts[best].tokens:
        return Reason.OFFLINE_PREFILL if trained else Reason.SAFE_MODE
    if len(drafts) > 1:
        return Reason.DECODE_FIRST
    if snapshot.chunk is None and not snapshot.candidates:
        return Reason.IDLE
    if not trained:
        return Reason.SAFE_MODE
    if admission.bound.held_reason is not None:
        return admission.bound.held_reason
    if snapshot.chunk is not None or admission.admissible(drafts[best].budget_s):
        return Reason.NO_SLACK
    if admission.slots <= 0:
        return Reason.NO_SLOT
    return Reason.NO_DECODE_TIME if admission.row_room() <= 0 else Reason.NO_MEMORY


def _online_order(snapshot: Snapshot, model: StepTimeModel) -> tuple[WaitingOnline, ...]:
    prefill_s = {
        w.rid: model.predict(BatchShape().with_chunk(w.extend_tokens, w.prefix_tokens))
        for w in snapshot.waiting_online
    }
    return in_deadline_order(snapshot.waiting_online, snapshot.now_s, prefill_s)


def _without(rows: OfflineRows, gone: Rows) -> OfflineRows:
    return rows.without({row.rid for row in gone}) if gone else rows
