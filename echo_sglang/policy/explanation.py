"""What a decision log says, in words: the story of one request, or of a span of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from echo_sglang.domain.plan import ChunkAction, Reason, ReleaseCause, StepPlan
from echo_sglang.domain.snapshot import OfflineCandidate, OfflineRow, Snapshot, WaitingOnline
from echo_sglang.errors import TraceError
from echo_sglang.policy.decision_log import Decision
from echo_sglang.policy.preemption import online_shortage

REASONS = {
    Reason.IDLE: "there was nothing to prefill",
    Reason.ONLINE_PREFILL: "online prompts only",
    Reason.ONLINE_WITH_OFFLINE: "online prompts first, offline ones in what they left",
    Reason.OFFLINE_PREFILL: "offline prompts in the time that online rows left",
    Reason.DECODE_FIRST: "a chunk was worth less than what it would have slowed or evicted",
    Reason.NO_SLACK: "the next online tokens left no time for a useful offline chunk",
    Reason.NO_IMPACT: "online requests had got as much slower as they may",
    Reason.NO_MEMORY: "KV beyond the burst reserve was taken",
    Reason.NO_SLOT: "request slots were taken",
    Reason.NO_DECODE_TIME: "with one row more, decoding would have taken more than its share",
    Reason.SAFE_MODE: "step times were not known well enough to plan offline work by them",
}

KNOWN_RIDS_SHOWN = 5


class Phase(StrEnum):
    """What a request was doing in one decision."""

    WAITS_ONLINE = "waits online"
    PREFILL_ONLINE = "online prefill"
    WAITS = "waits"
    OFFERED = "offered"
    PREFILL_GOES_ON = "prefill goes on"
    PREFILL_PARKED = "prefill parked"
    PREFILL_RELEASED = "prefill released"
    DECODES = "decodes"
    RELEASED = "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryPart:
    """Decisions in a row in which a request was doing the same.

    start_s, end_s: of the first and last of them, on the decisions' clock. first: why, in words,
    as it began. last: the same as it ended, if it reads differently.
    """

    phase: Phase
    start_s: float
    end_s: float
    first_step: int
    last_step: int
    first: str
    last: str


def story_of(rid: str, decisions: Sequence[Decision]) -> list[StoryPart]:
    """Raises TraceError, naming some requests that are in the log, if `rid` is not."""
    parts: list[StoryPart] = []
    for decision in decisions:
        seen = _seen(rid, decision)
        if seen is None:
            continue
        phase, words = seen
        step, now_s = decision.snapshot.step, decision.snapshot.now_s
        last = parts[-1] if parts else None
        if last is not None and last.phase is phase:
            parts[-1] = replace(last, end_s=now_s, last_step=step, last=words)
            continue
        parts.append(
            StoryPart(
                phase=phase,
                start_s=now_s,
                end_s=now_s,
                first_step=step,
                last_step=step,
                first=words,
                last=words,
            )
        )
    if not parts:
        raise TraceError(
            f"request {rid!r} is in none of the {len(decisions)} decisions; {_some_rids(decisions)}"
        )
    return parts


def _seen(rid: str, decision: Decision) -> tuple[Phase, str] | None:
    snapshot = decision.snapshot
    for waiting in snapshot.waiting_online:
        if waiting.rid == rid:
            return _waiting_online(waiting, decision)
    if snapshot.chunk is not None and snapshot.chunk.rid == rid:
        return _chunk(decision)
    for row in snapshot.offline_rows:
        if row.rid == rid:
            return _row(row, decision)
    for place, candidate in enumerate(snapshot.candidates, start=1):
        if candidate.rid == rid:
            return _candidate(candidate, place, decision)
    return None


def _waiting_online(waiting: WaitingOnline, decision: Decision) -> tuple[Phase, str]:
    snapshot, plan = decision.snapshot, decision.plan
    left_ms = 1e3 * (waiting.deadline_s - snapshot.now_s)
    due = f"first token due in {left_ms:.0f} ms" if left_ms >= 0 else f"late by {-left_ms:.0f} ms"
    prompt = f"{waiting.extend_tokens} prompt tokens to compute, {waiting.prefix_tokens} cached"
    if waiting.rid not in plan.online_order or not plan.runs_prefill:
        return Phase.WAITS_ONLINE, f"{prompt}, {due}; {REASONS[plan.reason]}"
    place = plan.online_order.index(waiting.rid) + 1
    return Phase.PREFILL_ONLINE, (
        f"{prompt}, {due}; place {place} of {len(plan.online_order)} in a chunk of "
        f"{plan.chunk_tokens} tokens"
    )


def _chunk(decision: Decision) -> tuple[Phase, str]:
    snapshot, plan = decision.snapshot, decision.plan
    assert snapshot.chunk is not None
    left = f"{snapshot.chunk.remaining_tokens} prompt tokens left"
    if plan.chunk_action is ChunkAction.RELEASE:
        return Phase.PREFILL_RELEASED, f"{left}; it gave way to {_online_need(snapshot)}"
    if plan.chunk_action is ChunkAction.PARK:
        return Phase.PREFILL_PARKED, f"{left}, its KV kept; {REASONS[plan.reason]}"
    return Phase.PREFILL_GOES_ON, f"{left}, a chunk of {plan.chunk_tokens}; {REASONS[plan.reason]}"


def _row(row: OfflineRow, decision: Decision) -> tuple[Phase, str]:
    output = f"{row.output_tokens} tokens produced, {row.kv_tokens} KV tokens held"
    if row.rid in decision.plan.release:
        return Phase.RELEASED, f"{output}; {cause_of_release(decision)}"
    return Phase.DECODES, output


def _candidate(candidate: OfflineCandidate, place: int, decision: Decision) -> tuple[Phase, str]:
    snapshot, plan = decision.snapshot, decision.plan
    what = (
        f"place {place} of {len(snapshot.candidates)} named of {snapshot.pooled} waiting; "
        f"{candidate.extend_tokens} tokens to compute, {candidate.prefix_tokens} cached"
    )
    if candidate.urgency > 1.0:
        what += f", urgency {candidate.urgency:.1f}"
    if candidate.steps_parked is not None:
        what += f", away for {candidate.steps_parked} iterations"
    if candidate.rid in plan.offline_order and plan.offline_tokens:
        got = f"offline prompts got {plan.offline_tokens} tokens"
        return Phase.OFFERED, f"{what}; {got}{considered(plan)}"
    return Phase.WAITS, f"{what}; {_why_not(decision)}"


def _why_not(decision: Decision) -> str:
    plan = decision.plan
    if plan.release:
        return f"others gave way at that moment: {cause_of_release(decision)}"
    if plan.offline_order and plan.offline_tokens:
        return "it did not fit, or had just been released"
    return REASONS[plan.reason] + considered(plan)


def considered(plan: StepPlan) -> str:
    """The plans that were weighed, best first, by offline tokens advanced per second; by tokens
    alone while no iteration's time is known."""
    feasible = sorted((o for o in plan.options if o.feasible), key=lambda o: -o.rate)
    if len(feasible) < 2:
        return ""
    if not any(o.seconds for o in feasible):
        weighed = ", ".join(f"{o.kind.value} {o.benefit_tokens:.0f} tokens" for o in feasible)
        return f"; weighed were {weighed}, nothing being known of their times"
    weighed = ", ".join(f"{o.kind.value} {o.rate:.0f}/s" for o in feasible)
    return f"; weighed were {weighed}"


def cause_of_release(decision: Decision) -> str:
    """Why offline rows gave way in this decision, with the figures that led to it."""
    snapshot, cause = decision.snapshot, decision.plan.release_cause
    if cause is ReleaseCause.SHORTAGE:
        return f"it gave way to {_online_need(snapshot)}"
    memory = snapshot.memory
    if cause is ReleaseCause.RESERVE:
        return (
            f"it had grown into the burst reserve: {memory.available_tokens} of "
            f"{memory.reserve_tokens} KV tokens were left"
        )
    if cause is ReleaseCause.SAFE_MODE:
        return f"{snapshot.online.rows} online rows ran and step times were not known"
    if cause is ReleaseCause.IMPACT:
        return "online requests had got as much slower as they may"
    due_s = snapshot.online.earliest_deadline_s
    if due_s is not None:
        return (
            f"{snapshot.online.rows} online rows could not afford it: the next token was due in "
            f"{1e3 * (due_s - snapshot.now_s):.0f} ms"
        )
    return "online requests needed its place"


def _online_need(snapshot: Snapshot) -> str:
    shortage = online_shortage(snapshot)
    waiting = f"{len(snapshot.waiting_online)} waiting online requests"
    if not shortage:
        return waiting
    return f"{waiting} that lacked {shortage.tokens} KV tokens and {shortage.slots} slots"


def _some_rids(decisions: Sequence[Decision]) -> str:
    known: dict[str, None] = {}
    for decision in decisions:
        for rid in _rids(decision.snapshot):
            known[rid] = None
            if len(known) >= KNOWN_RIDS_SHOWN:
                return f"in it are, for example, {', '.join(known)}"
    return f"in it are {', '.join(known)}" if known else "it names no request at all"


def _rids(snapshot: Snapshot) -> Iterator[str]:
    yield from (waiting.rid for waiting in snapshot.waiting_online)
    yield from (row.rid for row in snapshot.offline_rows)
    yield from (candidate.rid for candidate in snapshot.candidates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Decisions of a span of time, summed.

    reasons: how often each. online_tokens, offline_tokens: prompt tokens planned at most.
    released: offline rows that gave way, by cause. tightest_ms: least time that the SLOs left
    an iteration, None if they never bound one. over_budget: iterations predicted to end later.
    """

    start_s: float
    end_s: float
    decisions: int
    reasons: dict[str, int]
    online_tokens: int
    offline_tokens: int
    released: dict[str, int]
    chunks_released: int
    most_online_waiting: int
    most_online_rows: int
    most_offline_rows: int
    pooled: tuple[int, int]
    tightest_ms: float | None
    over_budget: int


def span_of(decisions: Sequence[Decision]) -> Span:
    """The sums of some decisions. Raises TraceError if there are none."""
    if not decisions:
        raise TraceError("no decision was made in that time")
    reasons: dict[str, int] = {}
    released: dict[str, int] = {}
    for decision in decisions:
        name = decision.plan.reason.value
        reasons[name] = reasons.get(name, 0) + 1
        if decision.plan.release:
            cause = _kind_of_release(decision)
            released[cause] = released.get(cause, 0) + len(decision.plan.release)
    plans = [decision.plan for decision in decisions]
    seen = [decision.snapshot for decision in decisions]
    budgets_s = [plan.budget_s for plan in plans if plan.budget_s not in (0.0, float("inf"))]
    return Span(
        start_s=seen[0].now_s,
        end_s=seen[-1].now_s,
        decisions=len(decisions),
        reasons=dict(sorted(reasons.items(), key=lambda item: -item[1])),
        online_tokens=sum(plan.chunk_tokens - plan.offline_tokens for plan in plans),
        offline_tokens=sum(plan.offline_tokens for plan in plans),
        released=released,
        chunks_released=sum(plan.chunk_action is ChunkAction.RELEASE for plan in plans),
        most_online_waiting=max(len(snapshot.waiting_online) for snapshot in seen),
        most_online_rows=max(snapshot.online.rows for snapshot in seen),
        most_offline_rows=max(len(snapshot.offline_rows) for snapshot in seen),
        pooled=(seen[0].pooled, seen[-1].pooled),
        tightest_ms=1e3 * min(budgets_s) if budgets_s else None,
        over_budget=sum(plan.predicted_s > plan.budget_s for plan in plans if plan.budget_s > 0.0),
    )


def _kind_of_release(decision: Decision) -> str:
    snapshot = decision.snapshot
    if online_shortage(snapshot):
        return "online requests lacked KV or slots"
    if snapshot.memory.available_tokens < snapshot.memory.reserve_tokens:
        return "the burst reserve was touched"
    return "online rows could not afford them"


def between(decisions: Sequence[Decision], start_s: float, end_s: float) -> list[Decision]:
    """Those made from `start_s` to `end_s`. Raises TraceError, naming what the log covers."""
    found = [d for d in decisions if start_s <= d.snapshot.now_s <= end_s]
    if not found:
        first_s = decisions[0].snapshot.now_s if decisions else 0.0
        last_s = decisions[-1].snapshot.now_s if decisions else 0.0
        raise TraceError(
            f"no decision was made between {start_s - first_s:.1f} s and {end_s - first_s:.1f} s "
            f"after the log's first one; it covers {last_s - first_s:.1f} s"
        )
    return found


def intervals(decisions: Sequence[Decision], count: int) -> list[Span]:
    """The same span cut into at most `count` parts of equal length; empty ones are left out."""
    start_s, end_s = decisions[0].snapshot.now_s, decisions[-1].snapshot.now_s
    width_s = max((end_s - start_s) / count, 1e-9)
    parts: dict[int, list[Decision]] = {}
    for decision in decisions:
        place = min(int((decision.snapshot.now_s - start_s) / width_s), count - 1)
        parts.setdefault(place, []).append(decision)
    return [span_of(part) for _, part in sorted(parts.items())]
