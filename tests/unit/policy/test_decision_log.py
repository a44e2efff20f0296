"""Decisions survive a dump and decide the same when replayed."""

from __future__ import annotations

import json

import pytest

from echo_sglang.domain.snapshot import ChunkInProgress
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.errors import TraceError
from echo_sglang.policy.coscheduler import decide
from echo_sglang.policy.decision_log import Decision, DecisionLog, read_decisions

from .builders import MODEL, SETTINGS, candidate, online, row, snapshot, waiting


def some_decisions() -> DecisionLog:
    log = DecisionLog(size=8)
    chunk = ChunkInProgress(
        rid="half", service_class=ServiceClass.OFFLINE, remaining_tokens=40, prefix_tokens=9
    )
    for state in (
        snapshot(),
        snapshot(candidates=(candidate("a", tokens=900),), online=online(2, due_in_s=0.2)),
        snapshot(waiting_online=(waiting("w", tokens=90),), chunk=chunk),
        snapshot(offline_rows=(row("r"),), free_slots=0, waiting_online=(waiting("v", tokens=9),)),
    ):
        log.append(Decision(state, MODEL, decide(state, MODEL, SETTINGS)))
    return log


def test_a_dumped_log_replays_to_the_same_plans() -> None:
    settings, decisions = read_decisions(some_decisions().lines(SETTINGS))
    assert settings == SETTINGS
    assert len(decisions) == 4
    assert all(decision.replays(settings) for decision in decisions)


def test_a_changed_record_no_longer_replays() -> None:
    header, *records = some_decisions().lines(SETTINGS)
    changed = json.loads(records[1])
    changed["snapshot"]["online"]["rows"] = 9
    settings, decisions = read_decisions([header, json.dumps(changed)])
    assert not decisions[0].replays(settings)


def test_the_log_keeps_only_the_newest() -> None:
    log = DecisionLog(size=2)
    for step in range(5):
        state = snapshot(step=step)
        log.append(Decision(state, MODEL, decide(state, MODEL, SETTINGS)))
    assert [summary["step"] for summary in log.last(10)] == [3, 4]
    assert log.reasons == {"idle": 5}


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([], "empty"),
        (["not json"], "line 1"),
        (['{"schema": 99, "settings": {}}'], "schema"),
    ],
)
def test_a_log_that_cannot_be_read_says_where(lines: list[str], named: str) -> None:
    with pytest.raises(TraceError, match=named):
        read_decisions(lines)


def test_a_torn_last_line_is_named() -> None:
    lines = list(some_decisions().lines(SETTINGS))
    with pytest.raises(TraceError, match="line 5"):
        read_decisions([*lines[:-1], lines[-1][:50]])
