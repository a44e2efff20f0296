"""The decision of one iteration: online first, offline in the time and KV they leave."""

from __future__ import annotations

import math

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.plan import ChunkAction, Reason, StepPlan
from echo_sglang.domain.snapshot import OfflineCandidate, OfflineRow, Snapshot, WaitingOnline
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.estimate.step_time import StepTimeModel
from echo_sglang.policy.admission import Admission
from echo_sglang.policy.iteration import Iteration, Work, total_tokens
from echo_sglang.policy.preemption import (
    covers,
    decode_shape,
    online_shortage,
    rows_for_reserve,
    rows_for_shortage,
    rows_for_time,
)
from echo_sglang.policy.settings import CoschedulerSettings
from echo_sglang.policy.slack import (
    arrival_guard,
    decode_budget,
    gap_budget,
    in_deadline_order,
    sustainable_step,
)


def decide(snapshot: Snapshot, model: StepTimeModel, settings: CoschedulerSettings) -> StepPlan:
    """Plan one iteration. Pure: the same arguments give the same plan.

    Online prompts come first, earliest deadline first. Offline rows are released when
    online requests lack KV, slots or time. Offline prompts fill what the SLOs leave.
    """
    waiting = _online_order(snapshot, model)
    released = rows_for_shortage(snapshot.offline_rows, online_shortage(snapshot))
    kept = _without(snapshot.offline_rows, released)
    if not released:
        released = rows_for_reserve(kept, snapshot.memory)
        kept = _without(kept, released)
    if snapshot.online.rows:
        late = _rows_beside_online(kept, snapshot, model, settings)
        released += late
        kept = _without(kept, late)
    step = _Step(snapshot, model, settings, kept)
    chunk_is_online = (
        snapshot.chunk is not None and snapshot.chunk.service_class is ServiceClass.ONLINE
    )
    if waiting or chunk_is_online:
        return step.plan_online(waiting, released)
    return step.plan_offline(released)


class _Step:
    """The parts of one decision that share its inputs. offline_rows: those that stay."""

    def __init__(
        self,
        snapshot: Snapshot,
        model: StepTimeModel,
        settings: CoschedulerSettings,
        offline_rows: tuple[OfflineRow, ...],
    ) -> None:
        self.snapshot = snapshot
        self.model = model
        self.settings = settings
        self.iteration = Iteration(snapshot, model, decode_shape(snapshot, offline_rows))
        self.admission = Admission(self.iteration, settings)
        self.least_tokens = max(settings.min_chunk_tokens, snapshot.page_size)

    def plan_online(
        self, waiting: tuple[WaitingOnline, ...], released: tuple[OfflineRow, ...]
    ) -> StepPlan:
        """Online prompts now; offline ones in the rest of the chunk, if there is any."""
        action, work = self._online_work(waiting, released)
        budget_s = self._online_budget(waiting, work)
        limit = max(self.iteration.largest_chunk(work, budget_s), self.least_tokens)
        tokens = min(limit, self.iteration.chunk_cap(work))
        plan = self._plan(
            Reason.ONLINE_PREFILL,
            tokens,
            work,
            budget_s,
            released,
            action,
            online=waiting,
            share=min(tokens, self._offline_chunk_left(action)),
        )
        if tokens < total_tokens(work) or action in (ChunkAction.PARK, ChunkAction.RELEASE):
            return plan
        return self._add_offline(plan, work, waiting, released)

    def plan_offline(self, released: tuple[OfflineRow, ...]) -> StepPlan:
        """Nobody online waits: fill the budget with offline prompts."""
        candidates = () if released else self.admission.admissible()
        chunk = self.snapshot.chunk
        work: list[tuple[int, int]] = []
        if chunk is not None:
            work.append((chunk.remaining_tokens, chunk.prefix_tokens))
        work.extend((c.extend_tokens, c.prefix_tokens) for c in candidates)
        park = ChunkAction.NONE if chunk is None else ChunkAction.PARK
        budget_s = self._offline_budget()
        if not work:
            reason = self._why_none(released)
            return self._plan(reason, 0, (), budget_s, released, park)
        tokens = self._offline_chunk(work, budget_s)
        if tokens == 0:
            reason = Reason.NO_SLACK if self.model.trained else Reason.SAFE_MODE
            return self._plan(reason, 0, (), budget_s, released, park)
        action = ChunkAction.NONE if chunk is None else ChunkAction.CONTINUE
        reason = Reason.OFFLINE_PREFILL if self.model.trained else Reason.SAFE_MODE
        return self._plan(
            reason, tokens, work, budget_s, released, action, offline=candidates, share=tokens
        )

    def _online_work(
        self, waiting: tuple[WaitingOnline, ...], released: tuple[OfflineRow, ...]
    ) -> tuple[ChunkAction, Work]:
        """What becomes of the half-done prefill, and the prefill of this iteration in order.

        A parked offline chunk keeps its KV, its slot and SGLang's only place for a cut
        prompt: it is parked only if online requests need none of them. One that cannot be
        released is finished first, lest both wait for each other.
        """
        chunk = self.snapshot.chunk
        prompts = [(w.extend_tokens, w.prefix_tokens) for w in waiting]
        if chunk is None:
            return ChunkAction.NONE, prompts
        own = (chunk.remaining_tokens, chunk.prefix_tokens)
        if chunk.service_class is ServiceClass.ONLINE:
            return ChunkAction.CONTINUE, [own, *prompts]
        budget_s = self._online_budget(waiting, prompts)
        uncut = total_tokens(prompts) <= self.iteration.largest_chunk(prompts, budget_s)
        if uncut and covers(released, online_shortage(self.snapshot)):
            return ChunkAction.PARK, prompts
        if chunk.releasable:
            return ChunkAction.RELEASE, prompts
        return ChunkAction.CONTINUE, [own, *prompts]

    def _offline_chunk_left(self, action: ChunkAction) -> int:
        """Tokens of an offline chunk that goes on before online prompts; 0 otherwise."""
        chunk = self.snapshot.chunk
        if chunk is None or action is not ChunkAction.CONTINUE:
            return 0
        return chunk.remaining_tokens if chunk.service_class is ServiceClass.OFFLINE else 0

    def _online_budget(self, waiting: tuple[WaitingOnline, ...], work: Work) -> float:
        """Time for one iteration of online prefill beside running online rows.

        Running rows set it, but the prompt tokens get at least as much time as the iteration
        costs without them: a backlog is not ended by crumbs. If the waiting ones would then
        miss their first token, the running rows may be late once, up to their largest gap:
        they can catch up.
        """
        slo = self.settings.slo
        budget_s = max(
            decode_budget(self.snapshot),
            slo.tpot_margin * slo.tpot_slo_s,
            2.0 * self.iteration.seconds(work, 1),
        )
        deadlines = [w.deadline_s for w in waiting]
        chunk = self.snapshot.chunk
        if chunk is not None and chunk.deadline_s is not None:
            deadlines.append(chunk.deadline_s)
        total = total_tokens(work)
        if not self.model.trained or not deadlines or math.isinf(budget_s):
            return budget_s
        per_step = max(self.iteration.largest_chunk(work, budget_s), 1)
        finish_s = self.snapshot.now_s + math.ceil(total / per_step) * budget_s
        if per_step >= total or finish_s <= max(deadlines):
            return budget_s
        return max(budget_s, gap_budget(self.snapshot))

    def _offline_budget(self) -> float:
        snapshot, slo = self.snapshot, self.settings.slo
        burst = snapshot.typical_burst_tokens
        decode = self.iteration.decode
        burst_s = self.model.predict(decode.with_chunk(burst, 0) if burst else decode)
        guard_s = arrival_guard(burst_s, slo) / snapshot.delivery_steps
        return min(decode_budget(snapshot), guard_s)

    def _add_offline(
        self,
        plan: StepPlan,
        work: Work,
        waiting: tuple[WaitingOnline, ...],
        released: tuple[OfflineRow, ...],
    ) -> StepPlan:
        if released or not self.model.trained or plan.offline_tokens:
            return plan
        snapshot = self.snapshot
        candidates = self.admission.admissible()
        if not candidates:
            return plan
        first_token_s = min((w.deadline_s - snapshot.now_s for w in waiting), default=math.inf)
        budget_s = min(self._offline_budget(), first_token_s)
        both = [*work, *((c.extend_tokens, c.prefix_tokens) for c in candidates)]
        known = max(self.iteration.known_tokens(), plan.chunk_tokens)
        tokens = min(self.iteration.largest_chunk(both, budget_s), known)
        if snapshot.online.rows:
            tokens = self.iteration.known_chunk(both, tokens)
        share = tokens - plan.chunk_tokens
        if share < self.settings.min_chunk_tokens:
            return plan
        return self._plan(
            Reason.ONLINE_WITH_OFFLINE,
            tokens,
            both,
            budget_s,
            released,
            plan.chunk_action,
            online=waiting,
            offline=candidates,
            share=share,
        )

    def _offline_chunk(self, work: Work, budget_s: float) -> int:
        """Tokens of an offline chunk, 0 if none is worth its time now.

        A small chunk may cost online rows nearly as much as a large one; decode-only
        iterations meanwhile gain the slack that a larger one then uses better.
        """
        iteration, settings = self.iteration, self.settings
        cap = iteration.chunk_cap(work)
        least = min(cap, self.least_tokens)
        if not self.model.trained:
            alone = not self.snapshot.online.rows
            return min(cap, max(settings.safe_chunk_tokens, iteration.known_tokens())) * alone
        tokens = min(iteration.largest_chunk(work, budget_s), iteration.known_tokens())
        if not self.snapshot.online.rows:
            # Nobody is delayed now, and a model that is wrong is corrected only by running.
            return max(tokens, least)
        tokens = iteration.known_chunk(work, tokens)
        if tokens < least:
            return 0
        efficient = iteration.is_efficient(work, tokens, settings.min_chunk_efficiency)
        return tokens if efficient else 0

    def _why_none(self, released: tuple[OfflineRow, ...]) -> Reason:
        if not self.snapshot.candidates:
            return Reason.IDLE
        if not self.model.trained:
            return Reason.SAFE_MODE
        if released or self.admission.row_room() <= 0:
            return Reason.NO_SLOT
        return Reason.NO_MEMORY

    def _plan(
        self,
        reason: Reason,
        tokens: int,
        work: Work,
        budget_s: float,
        released: tuple[OfflineRow, ...],
        action: ChunkAction,
        *,
        online: tuple[WaitingOnline, ...] = (),
        offline: tuple[OfflineCandidate, ...] = (),
        share: int = 0,
    ) -> StepPlan:
        return StepPlan(
            reason=reason,
            chunk_tokens=tokens,
            offline_tokens=share,
            reserve_tokens=self.admission.reserve_tokens() if offline else 0,
            online_order=tuple(w.rid for w in online),
            offline_order=tuple(c.rid for c in offline),
            release=tuple(row.rid for row in released),
            chunk_action=action,
            budget_s=budget_s,
            predicted_s=self.iteration.seconds(work, tokens),
        )


def _rows_beside_online(
    rows: tuple[OfflineRow, ...],
    snapshot: Snapshot,
    model: StepTimeModel,
    settings: CoschedulerSettings,
) -> tuple[OfflineRow, ...]:
    """Offline rows that online rows cannot afford; all of them while nothing can be predicted."""
    if not model.trained:
        return tuple(row for row in rows if row.releasable)
    alone_s = model.upper(decode_shape(snapshot, ()))
    floor_s = max(sustainable_step(snapshot, settings.slo), 1.25 * alone_s)
    return rows_for_time(rows, snapshot, model, floor_s)


def _online_order(snapshot: Snapshot, model: StepTimeModel) -> tuple[WaitingOnline, ...]:
    prefill_s = {
        w.rid: model.predict(BatchShape().with_chunk(w.extend_tokens, w.prefix_tokens))
        for w in snapshot.waiting_online
    }
    return in_deadline_order(snapshot.waiting_online, snapshot.now_s, prefill_s)


def _without(rows: tuple[OfflineRow, ...], gone: tuple[OfflineRow, ...]) -> tuple[OfflineRow, ...]:
    if not gone:
        return rows
    return tuple(row for row in rows if row not in gone)
