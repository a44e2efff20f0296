"""Whose turn it is in the offline pool: deadlines, those that waited too long, jobs, groups."""

from __future__ import annotations

from array import array

from echo_sglang.policy.deadlines import UrgencySettings
from echo_sglang.policy.offline_pool import OfflineEntry, OfflinePool, PoolSettings
from echo_sglang.policy.offline_status import offline_status, prospects_of


def add(
    pool: OfflinePool,
    rid: str,
    document: int,
    *,
    own: int = 0,
    job: str = "",
    weight: float | None = None,
    arrival_s: float = 0.0,
    deadline_s: float | None = None,
    max_new_tokens: int = 0,
) -> None:
    """100 tokens of a document and 10 of its own."""
    tokens = array("q", [document + 1] * 100 + [1_000_000 + own] * 10)
    entry = OfflineEntry(
        rid=rid,
        num_tokens=110,
        arrival_s=arrival_s,
        max_new_tokens=max_new_tokens,
        deadline_s=deadline_s,
        job=job,
        weight=weight,
    )
    pool.add(entry, tokens)


def admit_all(pool: OfflinePool, count: int, *, now_s: float = 0.0) -> list[str]:
    """One request an iteration: the first candidate."""
    order = []
    for _ in range(count):
        first = pool.candidates(8, now_s)[0]
        pool.produced(pool.admit(first.rid), 0, ended=True)
        order.append(first.rid)
    return order


def test_with_a_deadline_the_whole_group_goes_first_and_stays_together() -> None:
    pool = OfflinePool()
    for own in range(4):
        for document in range(3):
            add(pool, f"plain-{document}-{own}", document, own=own)
            add(pool, f"due-{document}-{own}", 10 + document, own=own, deadline_s=30.0)
    order = admit_all(pool, 24)
    assert all(rid.startswith("due") for rid in order[:12])
    documents = [rid.split("-")[1] for rid in order[:12]]
    assert documents == [d for document in dict.fromkeys(documents) for d in [document] * 4]


def test_earlier_deadlines_go_first() -> None:
    pool = OfflinePool()
    add(pool, "later", 1, deadline_s=50.0)
    add(pool, "sooner", 2, deadline_s=20.0)
    assert admit_all(pool, 2) == ["sooner", "later"]


def test_a_candidate_with_little_time_weighs_more() -> None:
    pool = OfflinePool()
    add(pool, "due", 1, deadline_s=5.0)
    add(pool, "plain", 2)
    pool.candidates(8, 0.0)
    assert pool.urgency("due") > 3.0
    assert pool.urgency("plain") == 1.0


def test_one_that_waited_too_long_goes_first_then_its_siblings() -> None:
    pool = OfflinePool(PoolSettings(max_wait_s=100.0))
    for own in range(5):
        add(pool, f"hot-{own}", 1, own=own, arrival_s=950.0)
    add(pool, "old-0", 2, own=0, arrival_s=0.0)
    add(pool, "old-1", 2, own=1, arrival_s=950.0)
    assert admit_all(pool, 3, now_s=1_000.0)[:2] == ["old-0", "old-1"]


def test_while_many_waited_too_long_groups_still_run_as_one() -> None:
    pool = OfflinePool(PoolSettings(max_wait_s=10.0, turn_tokens=10_000.0))
    for own in range(4):
        for document in range(3):
            add(pool, f"{document}-{own}", document, own=own)
    documents = [rid[0] for rid in admit_all(pool, 12, now_s=1_000.0)]
    assert documents == [d for document in dict.fromkeys(documents) for d in [document] * 4]


def test_overdue_work_gets_a_turn_even_beside_endless_urgent_work() -> None:
    pool = OfflinePool(PoolSettings(max_wait_s=10.0, turn_tokens=1_000.0))
    add(pool, "old", 1)
    for number in range(200):
        add(pool, f"due-{number}", 100 + number, arrival_s=995.0, deadline_s=1_001.0)
    order = admit_all(pool, 40, now_s=1_000.0)
    assert "old" in order  # 2 turns of 1,000 tokens are 19 requests of 110


def test_jobs_take_turns_at_the_end_of_a_group() -> None:
    pool = OfflinePool()
    for own in range(3):
        for document in range(2):
            add(pool, f"a-{document}-{own}", document, own=own, job="a")
            add(pool, f"b-{document}-{own}", 10 + document, own=own, job="b")
    groups = [rid[:3] for rid in admit_all(pool, 12)]
    assert groups == ["a-0"] * 3 + ["b-0"] * 3 + ["a-1"] * 3 + ["b-1"] * 3


def test_a_long_group_is_left_when_the_turn_is_over_and_taken_up_again() -> None:
    pool = OfflinePool(PoolSettings(turn_tokens=200.0))
    for own in range(40):
        add(pool, f"a-{own}", 1, own=own, job="a")
        add(pool, f"b-{own}", 2, own=own, job="b")
    jobs = "".join(rid[0] for rid in admit_all(pool, 60))
    # the first of a document costs 110, its siblings 10 each
    assert jobs.startswith("a" * 10 + "b" * 10)
    assert jobs.count("a") == jobs.count("b") == 30


def test_a_job_of_twice_the_weight_is_served_twice_as_much() -> None:
    pool = OfflinePool()
    for number in range(90):
        add(pool, f"a-{number}", number, job="a", weight=2.0)
        add(pool, f"b-{number}", 1_000 + number, job="b")
    order = admit_all(pool, 90)
    assert sum(rid.startswith("a") for rid in order) == 60


def test_what_the_operator_says_a_job_weighs_counts_more_than_what_requests_say() -> None:
    pool = OfflinePool(PoolSettings(weights={"b": 4.0, "*": 1.0}))
    for number in range(60):
        add(pool, f"a-{number}", number, job="a", weight=100.0)
        add(pool, f"b-{number}", 1_000 + number, job="b")
    order = admit_all(pool, 50)
    assert sum(rid.startswith("b") for rid in order) == 40


def test_a_job_that_comes_late_gets_no_credit_for_its_absence() -> None:
    pool = OfflinePool()
    for number in range(200):
        add(pool, f"a-{number}", number, job="a")
    admit_all(pool, 100)
    for number in range(100):
        add(pool, f"b-{number}", 1_000 + number, job="b")
    order = admit_all(pool, 40)
    assert sum(rid.startswith("b") for rid in order) == 20


def test_output_counts_against_the_job_that_asked_for_it() -> None:
    pool = OfflinePool()
    for number in range(100):
        add(pool, f"a-{number}", number, job="a", max_new_tokens=55)
        add(pool, f"b-{number}", 1_000 + number, job="b", max_new_tokens=55)
    served = {"a": 0, "b": 0}
    for _ in range(90):
        entry = pool.admit(pool.candidates(8, 0.0)[0].rid)
        pool.produced(entry, 55 if entry.job == "a" else 0, ended=True)
        served[entry.job] += 1
    # a request of a costs 110 + 2 * 55, one of b 110
    assert served == {"a": 30, "b": 60}


def test_siblings_of_other_jobs_run_while_the_document_is_hot() -> None:
    pool = OfflinePool()
    for own in range(3):
        add(pool, f"a-{own}", 1, own=own, job="a")
        add(pool, f"b-{own}", 1, own=10 + own, job="b")
        add(pool, f"c-{own}", 2, own=own, job="c")
    order = admit_all(pool, 9)
    assert {rid[0] for rid in order[:6]} == {"a", "b"}


def test_the_status_says_who_got_how_much_and_what_will_be_late() -> None:
    pool = OfflinePool(PoolSettings(urgency=UrgencySettings(guard_s=1.0)))
    for number in range(60):
        add(pool, f"a-{number}", number, job="a", weight=3.0, deadline_s=200.0)
        add(pool, f"b-{number}", 1_000 + number, job="b")
    for second in range(5):
        for first in pool.candidates(4, float(second)):
            pool.produced(pool.admit(first.rid), 0, ended=True)
    # 16 requests of 110 tokens in 4 s, four of them not timed yet: 440 to 550 tokens/s
    status = offline_status(pool, 4.5)
    jobs = {job["job"]: job for job in status["jobs"]}
    assert jobs["a"]["fair_share"] == 0.75
    assert abs(jobs["a"]["share_last_minute"] - 0.75) < 0.06
    assert jobs["a"]["due_in_s"] == 195.5
    assert jobs["a"]["finish_in_s"] > 0.0
    assert jobs["b"]["due_in_s"] is None
    (deadline,) = status["deadlines"]
    assert deadline["requests"] == jobs["a"]["waiting"]
    assert deadline["feasible"]
    assert status["late_requests"] == prospects_of(pool, 4.5).late_requests == 0


def test_idle_jobs_are_forgotten_but_not_those_with_work() -> None:
    pool = OfflinePool()
    add(pool, "kept", 0, job="kept")
    for number in range(3_000):
        add(pool, "x", 1, job=f"job-{number}")
        pool.remove("x")
    assert len(pool.shares) <= 1_025
    assert "kept" in {job.name for job in pool.shares.jobs()}
