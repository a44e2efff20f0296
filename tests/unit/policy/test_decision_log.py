"""Decisions survive a dump and decide the same when replayed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from echo_sglang.domain.snapshot import ChunkInProgress, ImpactRoom
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.errors import TraceError
from echo_sglang.estimate.fine_times import NUM_FEATURES
from echo_sglang.estimate.step_time import StepTimeFitter, StepTimeModel
from echo_sglang.policy.coscheduler import decide
from echo_sglang.policy.decision_log import Decision, DecisionLog, read_decisions
from tests.unit.estimate.machines import machine_samples, machine_training

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


def test_a_decision_within_an_impact_replays_with_the_times_it_was_made_on() -> None:
    # 10 ms an iteration and 4 ms a decode row, told apart from what the model says.
    times_s = (0.010, 0.004, *(0.0,) * (NUM_FEATURES - 2))
    room = ImpactRoom(waits_s2=1.0, longer_share=0.3, begins=True, times_s=times_s)
    state = snapshot(impact=room, online=online(2, due_in_s=9.0), offline_rows=(row("r"),))
    log = DecisionLog(size=2)
    log.append(Decision(state, MODEL, decide(state, MODEL, SETTINGS)))
    settings, (decision,) = read_decisions(log.lines(SETTINGS))
    assert decision.snapshot == state
    assert decision.replays(settings)
    # 10 + 3 * 4 ms within 1.3 times 10 + 2 * 4.
    assert decision.plan.predicted_s == pytest.approx(0.022)
    assert decision.plan.budget_s == pytest.approx(1.3 * 0.018)


def log_of_a_profiled_server() -> tuple[DecisionLog, list[StepTimeModel]]:
    """Decisions of a server that goes on from a profile; every one has a model of its own."""
    fitter = StepTimeFitter(start=machine_training().model)
    log, models = DecisionLog(size=64), []
    for step, sample in enumerate(machine_samples(40, seed=3)):
        fitter.observe(sample.shape, sample.seconds)
        models.append(fitter.model)
        state = snapshot(
            step=step,
            candidates=(candidate("a", tokens=900),),
            online=online(2, due_in_s=0.002 * step),
        )
        log.append(Decision(state, fitter.model, decide(state, fitter.model, SETTINGS)))
    return log, models


def test_decisions_on_a_profile_replay_exactly_and_write_it_once() -> None:
    log, models = log_of_a_profiled_server()
    lines = list(log.lines(SETTINGS))
    assert len(lines) == 1 + 1 + 40
    assert sum('"fitted"' in line for line in lines) == 1
    assert max(len(line) for line in lines[2:]) < 4_000
    settings, decisions = read_decisions(lines)
    assert [decision.model for decision in decisions] == models
    assert all(decision.replays(settings) for decision in decisions)


def test_a_profile_is_written_again_when_a_decision_used_another() -> None:
    log, _ = log_of_a_profiled_server()
    state = snapshot()
    other = replace(machine_training().model, fitted=replace(machine_training().model.fitted))
    log.append(Decision(state, other, decide(state, other, SETTINGS)))
    log.append(Decision(state, MODEL, decide(state, MODEL, SETTINGS)))
    lines = list(log.lines(SETTINGS))
    assert sum('"fitted"' in line for line in lines) == 2
    _, decisions = read_decisions(lines)
    assert decisions[-2].model == other
    assert decisions[-1].model.fitted is None


def test_a_decision_whose_profile_is_missing_is_named() -> None:
    log, _ = log_of_a_profiled_server()
    lines = list(log.lines(SETTINGS))
    with pytest.raises(TraceError, match="line 2"):
        read_decisions([lines[0], *lines[2:]])


def test_a_model_that_learned_from_nothing_replays_too() -> None:
    fitter = StepTimeFitter()
    for sample in machine_samples(60, seed=4):
        fitter.observe(sample.shape, sample.seconds)
    state = snapshot(candidates=(candidate("a", tokens=900),), online=online(2, due_in_s=0.03))
    log = DecisionLog(size=2)
    log.append(Decision(state, fitter.model, decide(state, fitter.model, SETTINGS)))
    settings, decisions = read_decisions(log.lines(SETTINGS))
    assert decisions[0].model == fitter.model
    assert decisions[0].replays(settings)


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
        (['{"schema": 99, "settings": {}}'], "schema 99"),
        (['{"schema": 1, "settings": {}}'], "schema 1"),
    ],
)
def test_a_log_that_cannot_be_read_says_where(lines: list[str], named: str) -> None:
    with pytest.raises(TraceError, match=named):
        read_decisions(lines)


def test_a_torn_last_line_is_named() -> None:
    lines = list(some_decisions().lines(SETTINGS))
    with pytest.raises(TraceError, match="line 5"):
        read_decisions([*lines[:-1], lines[-1][:50]])
