"""The decision of one iteration: online first, offline in the time and KV they leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.plan import ChunkAction, Reason, StepPlan
from echo_sglang.domain.snapshot import OfflineCandidate, OfflineRow, Snapshot, WaitingOnline
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.estimate.step_time import StepTimeModel
from echo_sglang.policy.preemption import (
    decode_shape,
    online_shortage,
    rows_for_shortage,
    rows_for_time,
)
from echo_sglang.policy.slack import (
    SloSettings,
    arrival_guard,
    decode_budget,
    gap_budget,
    in_deadline_order,
)

Work = Sequence[tuple[int, int]]
"""Prefill still to do, in admission order: (tokens to compute, tokens before them)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoschedulerSettings:
    """How the co-scheduler weighs.

    min_chunk_tokens: an offline chunk smaller than this is not worth an iteration.
    min_chunk_efficiency: nor is one whose tokens per second are below this share of a full
    chunk's, while online rows run.
    safe_chunk_tokens: chunk while nothing is known of the server's speed.
    decode_share: share of the TPOT SLO that decoding all rows may take; offline rows
    beyond it are not admitted, so that a chunk still fits beside them.
    min_parked_steps: iterations a released row stays away.
    """

    slo: SloSettings
    min_chunk_tokens: int = 16
    min_chunk_efficiency: float = 0.5
    safe_chunk_tokens: int = 32
    decode_share: float = 0.6
    min_parked_steps: int = 4


def decide(snapshot: Snapshot, model: StepTimeModel, settings: CoschedulerSettings) -> StepPlan:
    """Plan one iteration. Pure: the same arguments give the same plan.

    Online prompts come first, earliest deadline first. Offline rows are released when
    online requests lack KV, slots or time. Offline prompts fill what the SLOs leave.
    """
    waiting = _online_order(snapshot, model)
    released = rows_for_shortage(snapshot.offline_rows, online_shortage(snapshot))
    kept = _without(snapshot.offline_rows, released)
    if snapshot.online.rows and model.trained:
        alone_s = model.upper(decode_shape(snapshot, ()))
        floor_s = max(decode_budget(snapshot), 1.25 * alone_s)
        released += (late := rows_for_time(kept, snapshot, model, floor_s))
        kept = _without(kept, late)
    step = _Step(snapshot, model, settings, kept)
    chunk_is_online = (
        snapshot.chunk is not None and snapshot.chunk.service_class is ServiceClass.ONLINE
    )
    if waiting or chunk_is_online:
        return step.plan_online(waiting, released)
    return step.plan_offline(released)


class _Step:
    """The parts of one decision that share its inputs."""

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
        self.offline_rows = offline_rows
        self.decode = decode_shape(snapshot, offline_rows)

    def plan_online(
        self, waiting: tuple[WaitingOnline, ...], released: tuple[OfflineRow, ...]
    ) -> StepPlan:
        """Online prompts now; offline ones in the rest of the chunk, if there is any."""
        snapshot = self.snapshot
        action, work = self._online_work(waiting)
        budget_s = self._online_budget(waiting, work)
        limit = self.largest_chunk(work, budget_s)
        floor = max(self.settings.min_chunk_tokens, snapshot.page_size)
        tokens = min(sum(extend for extend, _ in work), max(limit, floor))
        tokens = min(tokens, snapshot.chunk_cap_tokens)
        plan = self._plan(
            Reason.ONLINE_PREFILL, tokens, work, budget_s, released, action, online=waiting
        )
        all_online = tokens >= sum(extend for extend, _ in work)
        if not all_online or action is ChunkAction.PARK:
            return plan
        return self._add_offline(plan, work, waiting, released)

    def plan_offline(self, released: tuple[OfflineRow, ...]) -> StepPlan:
        """Nobody online waits: fill the budget with offline prompts."""
        snapshot, settings = self.snapshot, self.settings
        candidates = self._admissible(released)
        chunk = snapshot.chunk
        work: list[tuple[int, int]] = []
        if chunk is not None:
            work.append((chunk.remaining_tokens, chunk.prefix_tokens))
        work.extend((c.extend_tokens, c.prefix_tokens) for c in candidates)
        park = ChunkAction.NONE if chunk is None else ChunkAction.PARK
        budget_s = self._offline_budget()
        if not work:
            reason = self._why_none(released)
            return self._plan(reason, 0, (), budget_s, released, park)
        limit = self.largest_chunk(work, budget_s)
        if not self.model.trained:
            limit = self._safe_limit()
        total = sum(extend for extend, _ in work)
        least = min(total, max(settings.min_chunk_tokens, snapshot.page_size))
        if not snapshot.online.rows:
            # Nobody is delayed now, and a model that is wrong is corrected only by running.
            limit = max(limit, least)
        tokens = min(total, limit, snapshot.chunk_cap_tokens)
        if tokens < least or not self._is_worth_it(work, tokens):
            reason = Reason.NO_SLACK if self.model.trained else Reason.SAFE_MODE
            return self._plan(reason, 0, (), budget_s, released, park)
        action = ChunkAction.NONE if chunk is None else ChunkAction.CONTINUE
        reason = Reason.OFFLINE_PREFILL if self.model.trained else Reason.SAFE_MODE
        return self._plan(
            reason, tokens, work, budget_s, released, action, offline=candidates, share=tokens
        )

    def largest_chunk(self, work: Work, budget_s: float) -> int:
        """Most prompt tokens of `work`, in order, whose iteration ends within `budget_s`."""
        high = min(sum(extend for extend, _ in work), self.snapshot.chunk_cap_tokens)
        if self.model.trained:
            high = min(high, max(2 * self.model.largest_extend_tokens, 1))
        if math.isinf(budget_s) or high <= 0:
            return max(high, 0)
        low = 0
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(work, middle) <= budget_s:
                low = middle
            else:
                high = middle - 1
        return low

    def seconds(self, work: Work, tokens: int) -> float:
        """Upper bound of the time until every online row has its next token.

        In a mixed iteration that is one iteration; otherwise the decode step that has to
        follow the prefill counts too.
        """
        snapshot, model = self.snapshot, self.model
        if tokens <= 0:
            return model.upper(self.decode)
        if snapshot.mixed:
            return model.upper(_with_work(self.decode, work, tokens))
        prefill_s = model.upper(_with_work(BatchShape(), work, tokens))
        return prefill_s + (model.upper(self.decode) if self.decode.decode_rows else 0.0)

    def _online_work(self, waiting: tuple[WaitingOnline, ...]) -> tuple[ChunkAction, Work]:
        chunk = self.snapshot.chunk
        prompts = [(w.extend_tokens, w.prefix_tokens) for w in waiting]
        if chunk is None:
            return ChunkAction.NONE, prompts
        if chunk.service_class is ServiceClass.ONLINE:
            own = (chunk.remaining_tokens, chunk.prefix_tokens)
            return ChunkAction.CONTINUE, [own, *prompts]
        fits = sum(extend for extend, _ in prompts) <= self.largest_chunk(
            prompts, self._online_budget(waiting, prompts)
        )
        if fits or not chunk.releasable:
            return ChunkAction.PARK, prompts
        return ChunkAction.RELEASE, prompts

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
            2.0 * self.seconds(work, 1),
        )
        deadlines = [w.deadline_s for w in waiting]
        chunk = self.snapshot.chunk
        if chunk is not None and chunk.deadline_s is not None:
            deadlines.append(chunk.deadline_s)
        total = sum(extend for extend, _ in work)
        if not self.model.trained or not deadlines or math.isinf(budget_s):
            return budget_s
        per_step = max(self.largest_chunk(work, budget_s), 1)
        finish_s = self.snapshot.now_s + math.ceil(total / per_step) * budget_s
        if per_step >= total or finish_s <= max(deadlines):
            return budget_s
        return max(budget_s, gap_budget(self.snapshot))

    def _offline_budget(self) -> float:
        snapshot, slo = self.snapshot, self.settings.slo
        burst = snapshot.typical_burst_tokens
        burst_s = self.model.predict(self.decode.with_chunk(burst, 0) if burst else self.decode)
        guard_s = arrival_guard(burst_s, slo) / snapshot.delivery_steps
        return min(decode_budget(snapshot), guard_s)

    def _add_offline(
        self,
        plan: StepPlan,
        work: Work,
        waiting: tuple[WaitingOnline, ...],
        released: tuple[OfflineRow, ...],
    ) -> StepPlan:
        if released or not self.model.trained or plan.chunk_action is ChunkAction.RELEASE:
            return plan
        snapshot = self.snapshot
        candidates = self._admissible(released)
        if not candidates:
            return plan
        first_token_s = min((w.deadline_s - snapshot.now_s for w in waiting), default=math.inf)
        budget_s = min(self._offline_budget(), first_token_s)
        both = [*work, *((c.extend_tokens, c.prefix_tokens) for c in candidates)]
        tokens = self.largest_chunk(both, budget_s)
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

    def _admissible(self, released: tuple[OfflineRow, ...]) -> tuple[OfflineCandidate, ...]:
        """Candidates that slots, memory and the decode-time share leave room for."""
        someone_online = bool(self.snapshot.waiting_online or self.snapshot.online.rows)
        if released or (someone_online and not self.model.trained):
            return ()
        rows_left = self._row_room()
        tokens_left = self._memory_room()
        chosen: list[OfflineCandidate] = []
        for candidate in self.snapshot.candidates:
            if len(chosen) >= rows_left:
                break
            steps_parked = candidate.steps_parked
            if steps_parked is not None and steps_parked < self.settings.min_parked_steps:
                continue
            need = candidate.extend_tokens + candidate.max_new_tokens + self.snapshot.page_size
            if need > tokens_left:
                break
            tokens_left -= need
            chosen.append(candidate)
        return tuple(chosen)

    def _row_room(self) -> int:
        """Offline rows that may join before decoding everybody takes too long."""
        snapshot, slo = self.snapshot, self.settings.slo
        slots = snapshot.free_slots - len(snapshot.waiting_online)
        if not self.model.trained:
            return min(slots, 1)
        limit_s = self.settings.decode_share * slo.tpot_slo_s
        rows = self.decode.decode_rows
        mean_kv = self.decode.decode_kv_tokens // rows if rows else 0
        room = 0
        while room < min(slots, len(snapshot.candidates)):
            grown = BatchShape(
                decode_rows=rows + room + 1,
                decode_kv_tokens=self.decode.decode_kv_tokens + (room + 1) * mean_kv,
            )
            if self.model.predict(grown) > limit_s:
                break
            room += 1
        return max(room, 1 if rows == 0 and slots > 0 else 0)

    def _memory_room(self) -> int:
        memory = self.snapshot.memory
        return memory.available_tokens - memory.growth_tokens - self._reserve_tokens()

    def _reserve_tokens(self) -> int:
        """The burst reserve; nothing while the server is empty, lest a long prompt starves."""
        alone = not self.decode.decode_rows and not self.snapshot.waiting_online
        if alone and self.snapshot.chunk is None:
            return 0
        return self.snapshot.memory.reserve_tokens

    def _is_worth_it(self, work: Work, tokens: int) -> bool:
        """False for a chunk that costs online rows much time for few tokens.

        Decode-only iterations meanwhile gain slack, which a larger chunk then uses better.
        """
        if not self.snapshot.online.rows or not self.model.trained:
            return True
        best = min(sum(extend for extend, _ in work), self.snapshot.chunk_cap_tokens)
        without_s = self.seconds(work, 0)
        cost_s = (self.seconds(work, tokens) - without_s) / tokens
        best_cost_s = (self.seconds(work, best) - without_s) / best
        return cost_s * self.settings.min_chunk_efficiency <= best_cost_s

    def _safe_limit(self) -> int:
        if self.snapshot.online.rows or self.snapshot.waiting_online:
            return 0
        return max(self.settings.safe_chunk_tokens, 2 * self.model.largest_extend_tokens)

    def _why_none(self, released: tuple[OfflineRow, ...]) -> Reason:
        if not self.snapshot.candidates:
            return Reason.IDLE
        if not self.model.trained:
            return Reason.SAFE_MODE
        if released or self._row_room() <= 0:
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
            reserve_tokens=self._reserve_tokens() if offline else 0,
            online_order=tuple(w.rid for w in online),
            offline_order=tuple(c.rid for c in offline),
            release=tuple(row.rid for row in released),
            chunk_action=action,
            budget_s=budget_s,
            predicted_s=self.seconds(work, tokens),
        )


def _online_order(snapshot: Snapshot, model: StepTimeModel) -> tuple[WaitingOnline, ...]:
    prefill_s = {
        w.rid: model.predict(BatchShape().with_chunk(w.extend_tokens, w.prefix_tokens))
        for w in snapshot.waiting_online
    }
    return in_deadline_order(snapshot.waiting_online, snapshot.now_s, prefill_s)


def _with_work(base: BatchShape, work: Work, tokens: int) -> BatchShape:
    """`base` plus the first `tokens` of `work`."""
    extend_tokens, pairs, square = base.extend_tokens, base.extend_pairs, base.extend_square
    left = tokens
    for extend, prefix in work:
        chunk = min(extend, left)
        if chunk <= 0:
            break
        extend_tokens += chunk
        pairs += chunk * prefix
        square += chunk * chunk
        left -= chunk
    return BatchShape(
        extend_tokens=extend_tokens,
        extend_pairs=pairs,
        extend_square=square,
        decode_rows=base.decode_rows,
        decode_kv_tokens=base.decode_kv_tokens,
    )


def _without(rows: tuple[OfflineRow, ...], gone: tuple[OfflineRow, ...]) -> tuple[OfflineRow, ...]:
    if not gone:
        return rows
    return tuple(row for row in rows if row not in gone)
