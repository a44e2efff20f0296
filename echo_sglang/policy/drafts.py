"""The few plans worth weighing for one iteration, made from the batch of the last one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from echo_sglang.domain.plan import ChunkAction, PlanKind
from echo_sglang.domain.snapshot import (
    ChunkInProgress,
    OfflineCandidate,
    OfflineRow,
    OfflineRows,
    WaitingOnline,
)
from echo_sglang.policy.admission import Admission
from echo_sglang.policy.bound import Bound
from echo_sglang.policy.iteration import Iteration, Work, total_tokens
from echo_sglang.policy.plans import Draft
from echo_sglang.policy.preemption import covers, decode_shape, online_shortage
from echo_sglang.policy.settings import CoschedulerSettings
from echo_sglang.policy.slack import decode_budget, gap_budget

WORTH_BEING_LATE = 1.25
"""Online rows are late for others' first tokens if those prompts run so many times as quickly."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """Makes drafts beside the rows of `iteration`, after `released` gave way.

    Whoever lets offline rows go admits no offline request in the same pass: the room is not
    theirs, and a result in flight would be applied to a row that came back.
    """

    iteration: Iteration
    bound: Bound
    admission: Admission
    settings: CoschedulerSettings
    released: tuple[OfflineRow, ...]

    # ------------------------------------------------------------ offline only

    def beside_nobody_waiting(self) -> list[Draft]:
        """Nobody online waits: fill the budget with offline prompts, or only decode."""
        chunk, budget_s = self.iteration.snapshot.chunk, self.bound.budget_s(self.iteration)
        candidates = self._candidates(budget_s)
        park = ChunkAction.NONE if chunk is None else ChunkAction.PARK
        drafts = [Draft(kind=PlanKind.KEEP, budget_s=budget_s, action=park)]
        own = () if chunk is None else ((chunk.remaining_tokens, chunk.prefix_tokens),)
        go_on = ChunkAction.NONE if chunk is None else ChunkAction.CONTINUE
        took_all = False
        if chunk is not None:
            alone = self._filled(PlanKind.CHUNK, go_on, own, (), budget_s)
            took_all = bool(alone) and alone[0].tokens < chunk.remaining_tokens
            drafts += alone
        cached = tuple(c for c in candidates if c.is_cached)
        if cached and chunk is None:
            drafts += self._filled(PlanKind.SIBLINGS, park, (), cached, budget_s)
        elif cached and chunk is not None:
            drafts += self._siblings_first(chunk, cached, budget_s)
        if candidates and not took_all and (chunk is not None or len(cached) < len(candidates)):
            drafts += self._filled(PlanKind.NEXT_GROUP, go_on, own, candidates, budget_s)
        return drafts

    def _filled(
        self,
        kind: PlanKind,
        action: ChunkAction,
        own: Work,
        candidates: tuple[OfflineCandidate, ...],
        budget_s: float,
    ) -> list[Draft]:
        """A draft with the largest chunk, or none if no chunk is worth its time."""
        work = [*own, *_work_of(candidates)]
        tokens = self._offline_chunk(work, budget_s)
        if tokens == 0:
            return []
        return [
            Draft(
                kind=kind,
                budget_s=budget_s,
                action=action,
                work=work,
                tokens=tokens,
                offline_tokens=tokens,
                offline=candidates,
            )
        ]

    def _siblings_first(
        self, chunk: ChunkInProgress, cached: tuple[OfflineCandidate, ...], budget_s: float
    ) -> list[Draft]:
        """A draft in which the half-done prompt gets what `cached` requests leave.

        It keeps SGLang's only place for a cut prompt, so they are taken whole or not at all.
        """
        own = (chunk.remaining_tokens, chunk.prefix_tokens)
        work = [*_work_of(cached), own]
        tokens = self._offline_chunk(work, budget_s)
        whole = _uncut(cached, tokens)
        if 0 < len(whole) < len(cached):
            work = [*_work_of(whole), own]
            tokens = self._offline_chunk(work, budget_s)
        taken = total_tokens(_work_of(whole))
        sits_out = tokens <= taken
        if tokens < taken or not whole or (sits_out and not self._may_sit_out(chunk)):
            return []
        return [
            Draft(
                kind=PlanKind.SIBLINGS,
                budget_s=budget_s,
                action=ChunkAction.PARK if sits_out else ChunkAction.CONTINUE,
                work=work,
                tokens=tokens,
                offline_tokens=tokens,
                chunk_limit=None if sits_out else tokens - taken,
                offline=whole,
            )
        ]

    def _offline_chunk(self, work: Work, budget_s: float) -> int:
        """Tokens of an offline chunk, 0 if none is worth its time now."""
        least = min(self.iteration.chunk_cap(work), self._least_tokens)
        return self.bound.chunk(self.iteration, work, budget_s, least)

    def _candidates(self, budget_s: float) -> tuple[OfflineCandidate, ...]:
        return () if self.released else self.admission.admissible(budget_s)

    def _may_sit_out(self, chunk: ChunkInProgress) -> bool:
        return chunk.parked_steps < self.settings.max_chunk_parked_steps

    # ----------------------------------------------------------- online first

    def for_online(self, waiting: tuple[WaitingOnline, ...]) -> list[Draft]:
        """Online prompts now; offline ones in the rest of the chunk, if there is any."""
        action, work = self._online_work(waiting)
        budget_s = self._online_budget(waiting, work)
        limit = max(self.iteration.largest_chunk(work, budget_s), self._least_tokens)
        tokens = min(limit, self.iteration.chunk_cap(work))
        own = min(tokens, self._offline_chunk_left(action))
        online = Draft(
            kind=PlanKind.ONLINE,
            budget_s=budget_s,
            action=action,
            work=work,
            tokens=tokens,
            offline_tokens=own,
            online=waiting,
        )
        alone = own or tokens < total_tokens(work) or not self.iteration.model.trained
        alone = alone or not self.bound.joins_online
        if alone or action in (ChunkAction.PARK, ChunkAction.RELEASE):
            return [online]
        left_s = self.bound.budget_s(self.iteration)
        candidates = self._candidates(left_s)
        cached = tuple(c for c in candidates if c.is_cached)
        drafts = [online, *self._joined(PlanKind.ONLINE_SIBLINGS, online, cached, left_s)]
        if len(cached) < len(candidates):
            drafts += self._joined(PlanKind.ONLINE_NEXT_GROUP, online, candidates, left_s)
        return drafts

    def _joined(
        self,
        kind: PlanKind,
        online: Draft,
        candidates: tuple[OfflineCandidate, ...],
        left_s: float,
    ) -> list[Draft]:
        """`online` with offline prompts behind, if the time left holds a useful chunk of them."""
        if not candidates:
            return []
        snapshot = self.iteration.snapshot
        first_token_s = min(
            (w.deadline_s - snapshot.now_s for w in online.online), default=math.inf
        )
        budget_s = min(left_s, first_token_s)
        work = [*online.work, *_work_of(candidates)]
        known = max(self.iteration.known_tokens(), online.tokens)
        tokens = min(self.iteration.largest_chunk(work, budget_s), known)
        if snapshot.online.rows:
            tokens = self.iteration.known_chunk(work, tokens)
        if tokens - online.tokens < self.settings.min_chunk_tokens:
            return []
        return [
            Draft(
                kind=kind,
                budget_s=budget_s,
                action=online.action,
                work=work,
                tokens=tokens,
                offline_tokens=tokens - online.tokens,
                online=online.online,
                offline=candidates,
            )
        ]

    def _online_work(self, waiting: tuple[WaitingOnline, ...]) -> tuple[ChunkAction, Work]:
        """What becomes of the half-done prefill, and the prefill of this iteration in order.

        A parked offline chunk keeps its KV, its slot and SGLang's only place for a cut
        prompt: it is parked only if online requests need none of them. One that cannot be
        released is finished first, lest both wait for each other.
        """
        chunk = self.iteration.snapshot.chunk
        prompts = [(w.extend_tokens, w.prefix_tokens) for w in waiting]
        if chunk is None:
            return ChunkAction.NONE, prompts
        own = (chunk.remaining_tokens, chunk.prefix_tokens)
        if chunk.is_online:
            return ChunkAction.CONTINUE, [own, *prompts]
        budget_s = self._online_budget(waiting, prompts)
        uncut = total_tokens(prompts) <= self.iteration.largest_chunk(prompts, budget_s)
        if uncut and covers(self.released, online_shortage(self.iteration.snapshot)):
            return ChunkAction.PARK, prompts
        if chunk.releasable:
            return ChunkAction.RELEASE, prompts
        return ChunkAction.CONTINUE, [own, *prompts]

    def _offline_chunk_left(self, action: ChunkAction) -> int:
        """Tokens of an offline chunk that goes on before online prompts; 0 otherwise."""
        chunk = self.iteration.snapshot.chunk
        if chunk is None or chunk.is_online or action is not ChunkAction.CONTINUE:
            return 0
        return chunk.remaining_tokens

    def _online_budget(self, waiting: tuple[WaitingOnline, ...], work: Work) -> float:
        """Time for one iteration of online prefill beside running online rows.

        Running rows set it, but the prompt tokens get at least as much time as the online rows
        alone take: a backlog is not ended by crumbs. If the waiting ones would then
        miss their first token, the running rows may be late once, up to their largest gap:
        they can catch up. But not for a backlog that a longer iteration hardly ends sooner.
        """
        iteration, slo = self.iteration, self.settings.slo
        snapshot = iteration.snapshot
        budget_s = max(
            decode_budget(snapshot),
            slo.tpot_margin * slo.tpot_slo_s,
            2.0 * iteration.model.upper(decode_shape(snapshot, OfflineRows())),
        )
        deadlines = [w.deadline_s for w in waiting]
        if snapshot.chunk is not None and snapshot.chunk.deadline_s is not None:
            deadlines.append(snapshot.chunk.deadline_s)
        if not iteration.model.trained or not deadlines or math.isinf(budget_s):
            return budget_s
        total = total_tokens(work)
        per_step = max(iteration.largest_chunk(work, budget_s), 1)
        finish_s = snapshot.now_s + math.ceil(total / per_step) * budget_s
        if per_step >= total or finish_s <= max(deadlines):
            return budget_s
        longer_s = max(budget_s, gap_budget(snapshot))
        most = max(iteration.largest_chunk(work, longer_s), 1)
        token_s = iteration.seconds(work, per_step) / per_step
        longer_token_s = iteration.seconds(work, most) / most
        return longer_s if token_s >= WORTH_BEING_LATE * longer_token_s else budget_s

    @property
    def _least_tokens(self) -> int:
        return max(self.settings.min_chunk_tokens, self.iteration.snapshot.page_size)


def _work_of(candidates: Sequence[OfflineCandidate]) -> list[tuple[int, int]]:
    return [(c.extend_tokens, c.prefix_tokens) for c in candidates]


def _uncut(candidates: Sequence[OfflineCandidate], tokens: int) -> tuple[OfflineCandidate, ...]:
    """The first candidates, as many as `tokens` hold whole."""
    whole: list[OfflineCandidate] = []
    for candidate in candidates:
        tokens -= candidate.extend_tokens
        if tokens < 0:
            break
        whole.append(candidate)
    return tuple(whole)
