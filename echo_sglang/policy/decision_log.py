"""A bounded log of decisions that can be read by people and replayed by tests.

A record holds the very values that `decide` got and gave; keeping them costs a reference,
text is made only when a dump is asked for. What a profile brings to a model is large and the
same in many decisions: it is written once, where first needed, and referred to by number.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from echo_sglang.domain.plan import (
    ChunkAction,
    PlanKind,
    PlanOption,
    Reason,
    ReleaseCause,
    StepPlan,
)
from echo_sglang.domain.snapshot import (
    ChunkInProgress,
    ImpactRoom,
    MemoryView,
    OfflineCandidate,
    OfflineRow,
    OfflineRows,
    OnlineLoad,
    Snapshot,
    WaitingOnline,
)
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.errors import TraceError
from echo_sglang.estimate.fitted import FittedTimes
from echo_sglang.estimate.plain import (
    fitted_from_plain,
    fitted_to_plain,
    model_from_plain,
    model_to_plain,
)
from echo_sglang.estimate.step_time import StepTimeModel
from echo_sglang.policy.coscheduler import decide
from echo_sglang.policy.settings import CoschedulerSettings
from echo_sglang.policy.slack import SloSettings

SCHEMA_VERSION = 3


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision with all it depended on."""

    snapshot: Snapshot
    model: StepTimeModel
    plan: StepPlan

    def replays(self, settings: CoschedulerSettings) -> bool:
        """True if deciding again gives the same plan."""
        return decide(self.snapshot, self.model, settings) == self.plan


class DecisionLog:
    """Keeps the last `size` decisions and counts their reasons since the start."""

    def __init__(self, size: int) -> None:
        self._decisions: deque[Decision] = deque(maxlen=size)
        self.reasons: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._decisions)

    def append(self, decision: Decision) -> None:
        """Remember one decision, forgetting the oldest if full."""
        self._decisions.append(decision)
        name = decision.plan.reason.value
        self.reasons[name] = self.reasons.get(name, 0) + 1

    def last(self, count: int) -> list[dict[str, Any]]:
        """The newest `count` decisions, oldest first, as short rows for people."""
        return [_summary(decision) for decision in list(self._decisions)[-count:]]

    def lines(
        self, settings: CoschedulerSettings, *, unix_offset_s: float | None = None
    ) -> Iterator[str]:
        """JSON lines: a header with the settings, then decisions and the fits they refer to.

        unix_offset_s: what makes Unix seconds of the decisions' clock, if it is known.
        """
        header = {"schema": SCHEMA_VERSION, "settings": asdict(settings)}
        if unix_offset_s is not None:
            header["unix_offset_s"] = unix_offset_s
        yield json.dumps(header)
        # By identity: equal fits of two profiles may be written twice, never confused.
        numbers: dict[int, int] = {}
        for decision in self._decisions:
            fitted = decision.model.fitted
            if fitted is not None and id(fitted) not in numbers:
                numbers[id(fitted)] = len(numbers)
                yield json.dumps({"fit": numbers[id(fitted)], "fitted": fitted_to_plain(fitted)})
            number = None if fitted is None else numbers[id(fitted)]
            yield json.dumps(_record(decision, number), default=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """A decision log that was read. unix_offset_s: see `DecisionLog.lines`."""

    settings: CoschedulerSettings
    decisions: list[Decision]
    unix_offset_s: float | None


def read_decisions(lines: Iterable[str]) -> tuple[CoschedulerSettings, list[Decision]]:
    """Settings and decisions of what `read_log` reads."""
    found = read_log(lines)
    return found.settings, found.decisions


def read_log(lines: Iterable[str]) -> DecisionRecord:
    """Read what `DecisionLog.lines` wrote.

    Raises TraceError naming the line that is not one of them, or that was cut off.
    """
    settings: CoschedulerSettings | None = None
    unix_offset_s: float | None = None
    decisions: list[Decision] = []
    fits: dict[int, FittedTimes] = {}
    for number, line in enumerate(lines, start=1):
        where = f"decision log line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            cut = settings is not None and not line.endswith("\n")
            what = "is cut off; dump the log again" if cut else "is no JSON"
            raise TraceError(f"{where} {what} ({error})") from error
        try:
            if settings is None:
                settings, unix_offset_s = _header(values)
            elif "fitted" in values:
                fits[values["fit"]] = fitted_from_plain(values["fitted"])
            else:
                decisions.append(_decision(values, fits))
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(
                f"{where}: {error!r}; expected what schema {SCHEMA_VERSION} of this release writes"
            ) from error
    if settings is None:
        raise TraceError("decision log is empty; expected a header line with the settings")
    return DecisionRecord(settings=settings, decisions=decisions, unix_offset_s=unix_offset_s)


def _summary(decision: Decision) -> dict[str, Any]:
    snapshot, plan = decision.snapshot, decision.plan
    return {
        "step": snapshot.step,
        "reason": plan.reason.value,
        "chunk_tokens": plan.chunk_tokens,
        "offline_tokens": plan.offline_tokens,
        "plan": plan.kind.value,
        "considered": [_considered(option) for option in plan.options],
        "released": len(plan.release),
        "release_cause": None if plan.release_cause is None else plan.release_cause.value,
        "chunk_action": plan.chunk_action.value,
        "budget_ms": None if plan.budget_s == float("inf") else round(1e3 * plan.budget_s, 1),
        "predicted_ms": round(1e3 * plan.predicted_s, 1),
        "online_rows": snapshot.online.rows,
        "online_waiting": len(snapshot.waiting_online),
        "offline_rows": len(snapshot.offline_rows),
        "pooled": snapshot.pooled,
    }


def _header(values: dict[str, Any]) -> tuple[CoschedulerSettings, float | None]:
    if values["schema"] != SCHEMA_VERSION:
        raise ValueError(f"schema {values['schema']!r}, written by another release")
    fields = dict(values["settings"])
    offset_s = values.get("unix_offset_s")
    settings = CoschedulerSettings(**fields | {"slo": SloSettings(**fields["slo"])})
    return settings, None if offset_s is None else float(offset_s)


def _record(decision: Decision, fit: int | None) -> dict[str, Any]:
    snapshot = decision.snapshot
    tables = {
        "offline_rows": [asdict(row) for row in snapshot.offline_rows],
        "candidates": [candidate._asdict() for candidate in snapshot.candidates],
    }
    return {
        "snapshot": asdict(snapshot) | tables,
        "model": model_to_plain(decision.model) | {"fit": fit},
        "plan": asdict(decision.plan),
    }


def _decision(values: dict[str, Any], fits: dict[int, FittedTimes]) -> Decision:
    fit = values["model"]["fit"]
    return Decision(
        snapshot=_snapshot(values["snapshot"]),
        model=model_from_plain(values["model"], None if fit is None else fits[fit]),
        plan=_plan(values["plan"]),
    )


def _snapshot(values: dict[str, Any]) -> Snapshot:
    impact = values.get("impact")
    chunk = values["chunk"]
    if chunk is not None:
        service_class = ServiceClass(chunk["service_class"])
        chunk = ChunkInProgress(**chunk | {"service_class": service_class})
    return Snapshot(
        **values
        | {
            "memory": MemoryView(**values["memory"]),
            "online": OnlineLoad(**values["online"]),
            "offline_rows": OfflineRows.of(OfflineRow(**row) for row in values["offline_rows"]),
            "waiting_online": tuple(WaitingOnline(**w) for w in values["waiting_online"]),
            "candidates": tuple(OfflineCandidate(**c) for c in values["candidates"]),
            "chunk": chunk,
            "impact": None if impact is None else _impact_room(impact),
        }
    )


def _impact_room(values: dict[str, Any]) -> ImpactRoom:
    return ImpactRoom(**values | {"times_s": tuple(values.get("times_s", ()))})


def _plan(values: dict[str, Any]) -> StepPlan:
    cause = values["release_cause"]
    return StepPlan(
        **values
        | {
            "reason": Reason(values["reason"]),
            "chunk_action": ChunkAction(values["chunk_action"]),
            "online_order": tuple(values["online_order"]),
            "offline_order": tuple(values["offline_order"]),
            "release": tuple(values["release"]),
            "release_cause": None if cause is None else ReleaseCause(cause),
            "kind": PlanKind(values["kind"]),
            "options": tuple(
                PlanOption(**o | {"kind": PlanKind(o["kind"])}) for o in values["options"]
            ),
        }
    )


def _considered(option: PlanOption) -> dict[str, Any]:
    return {
        "plan": option.kind.value,
        "chunk_tokens": option.chunk_tokens,
        "released": option.released,
        "benefit_tokens": round(option.benefit_tokens, 1),
        "predicted_ms": round(1e3 * option.seconds, 1),
        "feasible": option.feasible,
    }
