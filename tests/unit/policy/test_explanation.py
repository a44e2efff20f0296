"""The story of a request and of a span, from decisions whose inputs say what must be told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from echo_sglang.domain.snapshot import ChunkInProgress, Snapshot
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.errors import TraceError
from echo_sglang.estimate.step_time import StepTimeModel
from echo_sglang.policy.coscheduler import decide
from echo_sglang.policy.decision_log import Decision
from echo_sglang.policy.explanation import Phase, between, intervals, span_of, story_of

from .builders import MODEL, SETTINGS, candidate, online, row, snapshot, waiting


def decided(*states: Snapshot) -> list[Decision]:
    """One decision every 100 ms, steps from 1 on."""
    found = []
    for step, state in enumerate(states, start=1):
        at = replace(state, step=step, now_s=state.now_s + 0.1 * step, pooled=len(state.candidates))
        found.append(Decision(at, MODEL, decide(at, MODEL, SETTINGS)))
    return found


def half_done(rid: str, *, left: int) -> ChunkInProgress:
    return ChunkInProgress(
        rid=rid, service_class=ServiceClass.OFFLINE, remaining_tokens=left, prefix_tokens=512
    )


def life_of_an_offline_request() -> list[Decision]:
    crowd = tuple(waiting(f"w{n}", tokens=900) for n in range(11))
    return decided(
        snapshot(online=online(2, due_in_s=0.02), candidates=(candidate("x", tokens=900),)),
        snapshot(candidates=(candidate("y", tokens=40), candidate("x", tokens=900))),
        snapshot(chunk=half_done("x", left=388)),
        snapshot(offline_rows=(row("x", output=1),)),
        snapshot(offline_rows=(row("x", output=2),)),
        snapshot(offline_rows=(row("x", output=3),), waiting_online=crowd),
        snapshot(candidates=(candidate("x", tokens=1, parked=1)._replace(rest_steps=4),)),
    )


def test_a_story_tells_every_phase_of_an_offline_request() -> None:
    story = story_of("x", life_of_an_offline_request())
    assert [part.phase for part in story] == [
        Phase.WAITS,
        Phase.OFFERED,
        Phase.PREFILL_GOES_ON,
        Phase.DECODES,
        Phase.RELEASED,
        Phase.WAITS,
    ]
    waits, offered, _, decodes, released, again = story
    assert "no time for a useful offline chunk" in waits.first
    assert "place 2 of 2 named of 2 waiting" in offered.first
    assert (decodes.first_step, decodes.last_step) == (4, 5)
    assert (decodes.first[:8], decodes.last[:8]) == ("1 tokens", "2 tokens")
    # 11 prompts of 900 tokens and 24 to produce, a page each, one more: 10,176 of 10,000
    assert "lacked 176 KV tokens" in released.first
    assert "away for 1 iterations" in again.first


def test_plans_are_told_by_tokens_while_no_times_are_known() -> None:
    state, untrained = snapshot(candidates=(candidate("x", tokens=900),), pooled=1), StepTimeModel()
    first = Decision(state, untrained, decide(state, untrained, SETTINGS))
    (told,) = story_of("x", [first])
    assert f"next_group {SETTINGS.safe_chunk_tokens} tokens, keep 0 tokens" in told.first
    (later,) = story_of("x", decided(state))
    assert "tokens, keep" not in later.first and "/s, keep 0/s" in later.first


def test_a_row_that_grew_into_the_burst_reserve_says_so() -> None:
    rows = (row("x", kv=900), row("y", kv=700))
    tight = replace(snapshot().memory, available_tokens=900, reserve_tokens=1_000)
    story = story_of("x", decided(snapshot(offline_rows=rows, memory=tight)))
    assert story[0].phase is Phase.RELEASED
    assert "900 of 1000 KV tokens were left" in story[0].first


def test_the_story_of_an_online_request_says_when_it_was_due() -> None:
    ahead = waiting("w", tokens=90, due_in_s=2.0)
    late = waiting("w", tokens=90, due_in_s=0.1)
    on_time, = story_of("w", decided(snapshot(waiting_online=(ahead,))))  # fmt: skip
    assert on_time.phase is Phase.PREFILL_ONLINE
    assert "first token due in 1900 ms" in on_time.first
    later = decided(snapshot(), snapshot(waiting_online=(late,)))
    assert "late by 100 ms" in story_of("w", later)[0].first


def test_a_request_that_is_not_in_the_log_is_refused_with_some_that_are() -> None:
    with pytest.raises(TraceError, match=r"in none of the 7 decisions; in it are, .*x, y, w0"):
        story_of("nobody", life_of_an_offline_request())


def test_a_span_sums_what_was_decided_and_why_rows_gave_way() -> None:
    span = span_of(life_of_an_offline_request())
    assert span.decisions == 7
    assert sum(span.reasons.values()) == 7
    assert span.released == {"online requests lacked KV or slots": 1}
    assert span.most_online_waiting == 11
    # 490 ms of the guard's 500 are left beside an iteration's 10; then the rest of the prompt
    assert span.offline_tokens == 490 + 388
    assert span.end_s - span.start_s == pytest.approx(0.6)


def test_intervals_hold_every_decision_once() -> None:
    decisions = life_of_an_offline_request()
    assert sum(part.decisions for part in intervals(decisions, 3)) == 7
    assert len(intervals(decisions, 100)) == 7
    assert [part.decisions for part in intervals(decisions[:1], 12)] == [1]


def test_a_time_outside_the_log_is_refused_with_what_it_covers() -> None:
    decisions = life_of_an_offline_request()
    assert len(between(decisions, 10.15, 10.35)) == 2
    with pytest.raises(TraceError, match=r"it covers 0\.6 s"):
        between(decisions, 50.0, 60.0)
