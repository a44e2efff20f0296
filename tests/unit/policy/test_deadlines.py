"""Deadlines: work that must go first does, what cannot be in time is said, nobody else pays."""

from __future__ import annotations

import math

import pytest

from echo_sglang.policy.deadlines import MAX_URGENCY, Deadlines, Due, OfflinePace, UrgencySettings

NOW_S = 1_000.0
EXACT = UrgencySettings(guard_s=0.0, guard_share=0.0)


def pace(*, work_per_s: float = 100.0, seconds: int = 30, steps_per_s: int = 10) -> OfflinePace:
    """Offline work done at a steady pace for a while."""
    found = OfflinePace()
    for step in range(seconds * steps_per_s + 1):
        found.tick(NOW_S - seconds + step / steps_per_s)
        found.done(work_per_s / steps_per_s)
    return found


def classes(
    *given: tuple[float, int, float], settings: UrgencySettings = EXACT, output_tokens: int = 0
) -> Deadlines:
    """(seconds until the deadline, requests, work of each) for every class."""
    found = Deadlines(settings)
    ticket = 0
    for due_in_s, requests, work in given:
        for _ in range(requests):
            ticket += 1
            place = (NOW_S, ticket, f"r{ticket}")
            found.add(place, NOW_S + due_in_s, NOW_S, work, output_tokens)
    return found


def test_the_pace_is_measured_only_while_work_waits() -> None:
    found = pace(work_per_s=100.0)
    assert found.work_per_s == pytest.approx(100.0, rel=0.01)
    found.pause()
    found.tick(NOW_S + 3_600.0)
    assert found.work_per_s == pytest.approx(100.0, rel=0.01)
    assert found.step_s == pytest.approx(0.1, rel=0.01)


def test_no_pace_is_claimed_before_enough_was_seen() -> None:
    found = OfflinePace()
    found.tick(0.0)
    found.done(1e6)
    found.tick(2.9)
    assert found.work_per_s is None
    found.tick(3.1)
    assert found.work_per_s is not None


def test_laxity_counts_all_work_due_before() -> None:
    # 100 tokens/s; 20 * 100 tokens due in 32 s take 20 s, 10 * 100 more due in 64 s take 10 s
    outlook = classes((32.0, 20, 100.0), (64.0, 10, 100.0)).outlook(NOW_S, pace())
    assert [o.requests for o in outlook] == [20, 10]
    assert outlook[0].laxity_s == pytest.approx(12.0, abs=0.4)
    assert outlook[1].laxity_s == pytest.approx(34.0, abs=0.6)
    assert not any(o.late_requests or o.urgent for o in outlook)


def test_one_long_answer_takes_its_time_however_fast_the_rest_goes() -> None:
    # 1,000 output tokens at 10 iterations a second: 100 s
    outlook = classes((64.0, 1, 1.0), output_tokens=1_000).outlook(NOW_S, pace())
    assert outlook[0].hopeless
    assert outlook[0].late_requests == 1


def test_answers_that_stay_short_need_less_time_than_they_are_allowed() -> None:
    short = pace()
    for _ in range(50):
        short.ended(output_tokens=10, allowed_tokens=100)
    outlook = classes((64.0, 1, 1.0), output_tokens=500).outlook(NOW_S, short)
    assert outlook[0].laxity_s == pytest.approx(64.0 - 5.0, abs=1.0)  # 50 tokens at 10 a second


def test_work_becomes_urgent_when_its_laxity_falls_below_the_guard() -> None:
    settings = UrgencySettings(guard_s=15.0, guard_share=0.5)
    assert not classes((64.0, 20, 100.0), settings=settings).outlook(NOW_S, pace())[0].urgent
    assert classes((32.0, 20, 100.0), settings=settings).outlook(NOW_S, pace())[0].urgent
    # 40 s of work: half of it, 20 s, is the guard
    assert classes((58.0, 40, 100.0), settings=settings).outlook(NOW_S, pace())[0].urgent


def test_infeasible_work_is_said_early_with_how_much_of_it_will_be_late() -> None:
    # 32 s at 100 tokens/s is 3,200 of 8,000 tokens
    outlook = classes((32.0, 80, 100.0)).outlook(NOW_S, pace())[0]
    assert outlook.laxity_s == pytest.approx(-48.0, abs=1.0)
    assert outlook.late_requests == 48
    assert outlook.urgent
    assert not outlook.hopeless
    assert outlook.urgency == MAX_URGENCY


def test_what_is_late_already_goes_first_no_more_and_makes_nobody_late() -> None:
    deadlines = classes((-5.0, 1_000, 100.0), (32.0, 20, 100.0))
    late, other = deadlines.outlook(NOW_S, pace())
    assert late.hopeless
    assert late.late_requests == 1_000
    assert late.urgency == 1.0
    assert other.late_requests == 0
    assert [found.due_s for found in deadlines.urgent(NOW_S, pace())] == []


def test_infeasible_work_holds_later_work_up_only_until_its_own_deadline() -> None:
    # 800 s of work due in 32 s, then 20 s of work due in 64 s
    first, second = classes((32.0, 800, 100.0), (64.0, 20, 100.0)).outlook(NOW_S, pace())
    assert first.late_requests == 768
    assert second.late_requests == 0
    assert second.laxity_s == pytest.approx(64.0 - 32.0 - 20.0, abs=0.6)


def test_without_a_pace_only_what_is_due_within_a_minute_goes_first() -> None:
    near, far = classes((30.0, 1, 100.0), (6_000.0, 1, 100.0)).outlook(NOW_S, OfflinePace())
    assert (near.urgent, far.urgent) == (True, False)
    assert near.laxity_s is None
    assert near.finish_s is None
    assert far.urgency == 1.0


def test_urgency_rises_as_laxity_falls() -> None:
    settings = UrgencySettings(guard_s=20.0, guard_share=0.0)
    seen = []
    for due_in_s in (200.0, 60.0, 45.0, 35.0, 25.0, 18.0):
        deadlines = classes((due_in_s, 20, 100.0), settings=settings)
        seen.append(deadlines.outlook(NOW_S, pace())[0].urgency)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (1.0, MAX_URGENCY)


def test_many_deadlines_make_few_classes() -> None:
    deadlines = Deadlines(EXACT)
    for ticket in range(10_000):
        due_in_s = 10.0 + ticket * 8.64  # spread over a day
        deadlines.add((NOW_S, ticket, str(ticket)), NOW_S + due_in_s, NOW_S, 1.0, 1)
    assert len(deadlines) < 1_000
    outlook = deadlines.outlook(NOW_S, pace())
    assert sum(o.requests for o in outlook) == 10_000


def test_a_class_is_never_due_later_than_its_requests() -> None:
    for due_in_s in (0.5, 3.0, 100.3, 7_201.7, 86_399.9):
        found = Deadlines(EXACT).add((0.0, 1, "a"), NOW_S + due_in_s, NOW_S, 1.0, 1)
        early_s = NOW_S + due_in_s - found.due_s
        assert 0.0 <= early_s <= max(1.0, 0.01 * due_in_s)


def test_a_class_without_requests_is_gone() -> None:
    deadlines = Deadlines(EXACT)
    place = (0.0, 1, "a")
    found = deadlines.add(place, NOW_S + 9.0, NOW_S, 5.0, 1)
    assert len(deadlines.outlook(NOW_S, pace())) == 1
    deadlines.remove(found, place, 5.0)
    assert len(deadlines) == 0
    assert deadlines.outlook(NOW_S, pace()) == ()
    assert math.isfinite(found.work)


def test_a_running_request_is_as_urgent_as_those_that_wait_with_it() -> None:
    # 20 * 100 tokens at 100 a second take 20 s: laxity 12 s of twice the 10 s of guard
    guarded = UrgencySettings(guard_s=10.0, guard_share=0.0)
    found = classes((32.0, 20, 100.0), settings=guarded)
    found.outlook(NOW_S, pace())
    due = Due(NOW_S + 32.0, NOW_S)
    waiting = found.outlook(NOW_S, pace())[0].urgency
    assert waiting == pytest.approx(MAX_URGENCY - (MAX_URGENCY - 1.0) * 0.6, abs=0.1)
    assert found.urgency_of_running(due, NOW_S, pace(), output_tokens=0) == waiting
    # its own answer takes longer still: 300 tokens at 10 a second leave 2 s
    own = found.urgency_of_running(due, NOW_S, pace(), output_tokens=300)
    assert own == pytest.approx(MAX_URGENCY - (MAX_URGENCY - 1.0) * 0.1, abs=0.1)


def test_a_running_request_that_cannot_be_in_time_is_as_any_other() -> None:
    found = classes()
    late = Due(NOW_S - 1.0, NOW_S - 60.0)
    hopeless = Due(NOW_S + 10.0, NOW_S - 60.0)
    assert found.urgency_of_running(late, NOW_S, pace(), output_tokens=1) == 1.0
    assert found.urgency_of_running(hopeless, NOW_S, pace(), output_tokens=101) == 1.0
