"""Reuse of idle online KV is learned by age, in tokens, and forgotten."""

from __future__ import annotations

import pytest

from echo_sglang.kv.reuse import AGE_EDGES_S, NUM_BUCKETS, ReuseByAge, bucket_of

NEVER = (0.0,) * NUM_BUCKETS


def test_the_edges_part_the_ages() -> None:
    assert bucket_of(0.0) == 0
    assert bucket_of(AGE_EDGES_S[0]) == 1
    assert bucket_of(AGE_EDGES_S[-1] + 1e9) == NUM_BUCKETS - 1


def test_what_is_hit_half_of_the_time_is_expected_half_of_the_time() -> None:
    reuse = ReuseByAge(prior=NEVER)
    for _ in range(1_000):
        reuse.entered(2, 1_000, now_s=0.0)
        reuse.entered(2, 1_000, now_s=0.0)
        reuse.hit(2, 1_000)
    reuse.relearn()
    assert reuse.expected(2) == pytest.approx(0.5, abs=0.01)


def test_a_hit_later_counts_for_all_ages_before_it() -> None:
    reuse = ReuseByAge(prior=NEVER)
    for bucket in (1, 3):
        reuse.entered(bucket, 10**9, now_s=0.0)
        reuse.hit(bucket, 10**9 // 2)
    reuse.relearn()
    # half is hit in bucket 3, and of what enters bucket 1 half there, half of the rest in 3
    assert reuse.expected(3) == pytest.approx(0.5, abs=1e-3)
    assert reuse.expected(2) == pytest.approx(0.5, abs=1e-3)
    assert reuse.expected(1) == pytest.approx(0.75, abs=1e-3)
    assert reuse.expected(4) == 0.0


def test_the_expectation_never_rises_with_age_and_waits_for_relearn() -> None:
    reuse = ReuseByAge()
    before = [reuse.expected(bucket) for bucket in range(NUM_BUCKETS)]
    assert before == sorted(before, reverse=True)
    reuse.entered(0, 10**6, now_s=0.0)
    assert [reuse.expected(bucket) for bucket in range(NUM_BUCKETS)] == before
    reuse.relearn()
    assert reuse.expected(0) < before[0]


def test_evicted_tokens_leave_the_sample_half_way() -> None:
    reuse = ReuseByAge(prior=NEVER)
    reuse.entered(0, 2 * 10**9, now_s=0.0)
    reuse.hit(0, 10**9 // 2)
    reuse.evicted(0, 2 * 10**9)
    reuse.relearn()
    assert reuse.expected(0) == pytest.approx(0.5, abs=1e-3)  # 0.5 of 2 - 1


def test_old_habits_are_forgotten_by_half_lives() -> None:
    reuse = ReuseByAge(prior=NEVER, half_life_s=100.0)
    reuse.entered(0, 10**6, now_s=0.0)
    reuse.hit(0, 10**6)
    for minute in range(1, 21):
        reuse.entered(0, 10**5, now_s=60.0 * minute)
    reuse.relearn()
    assert reuse.expected(0) < 0.01
