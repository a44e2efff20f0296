"""Candidates: nothing is computed twice, the cache is asked but not told."""

from __future__ import annotations

from array import array

from echo_sglang.policy.offline_pool import OfflineEntry, OfflinePool, PoolSettings
from echo_sglang.policy.selection import (
    BeingComputed,
    SelectionSettings,
    select_candidates,
    wanted_next,
)


def filled(documents: int, questions: int) -> OfflinePool:
    pool = OfflinePool()
    for question in range(questions):
        for document in range(documents):
            tokens = array("q", [document + 1] * 200 + [100 + question] * 10)
            entry = OfflineEntry(
                rid=f"{document}-{question}", num_tokens=210, arrival_s=0.0, max_new_tokens=8
            )
            pool.add(entry, tokens)
    return pool


def select(pool: OfflinePool, cached: dict[str, int], wanted: int = 10_000) -> list[str]:
    candidates = select_candidates(
        pool,
        lambda entry: cached.get(entry.rid[0], 0),
        now_s=0.0,
        step=7,
        wanted_tokens=wanted,
        settings=SelectionSettings(limit=32),
    )
    return [candidate.rid for candidate in candidates]


def test_only_one_request_of_a_cold_document_is_tried_at_once() -> None:
    chosen = select(filled(documents=3, questions=4), cached={})
    assert len(chosen) == len({rid[0] for rid in chosen})


def test_all_questions_of_a_cached_document_are_tried_together() -> None:
    pool = filled(documents=2, questions=4)
    pool.admit("0-0")  # document 0 is the group at work
    assert select(pool, cached={"0": 200})[:3] == ["0-1", "0-2", "0-3"]


def test_siblings_wait_for_what_a_half_done_prompt_is_computing() -> None:
    pool = filled(documents=2, questions=4)
    prompt = pool.tokens("0-0")
    pool.admit("0-0")
    being = BeingComputed(pool, SelectionSettings(slack_tokens=32))

    def chosen_after(computed: int) -> list[str]:
        candidates = select_candidates(
            pool,
            lambda entry: computed if entry.rid[0] == "0" else 0,
            now_s=0.0,
            step=7,
            wanted_tokens=10_000,
            settings=SelectionSettings(slack_tokens=32),
            computing=being.by("0-0", lambda: prompt, computed),
        )
        return [candidate.rid for candidate in candidates]

    # 200 tokens of document: with 100 of them in the cache nobody computes the others again,
    # with 170 the last 30 are not worth the wait
    assert chosen_after(100) == ["1-0"]
    assert chosen_after(170)[:3] == ["0-1", "0-2", "0-3"]


def test_a_half_done_prompt_is_walked_again_only_when_requests_came_in() -> None:
    pool = filled(documents=2, questions=3)
    prompt = pool.tokens("0-0")
    pool.admit("0-0")
    walks: list[int] = []

    def tokens() -> array[int]:
        walks.append(1)
        return prompt

    being = BeingComputed(pool, SelectionSettings(slack_tokens=32))
    document = pool.index.end("0-1").parent
    assert [being.by("0-0", tokens, done) for done in (0, 100, 180)] == [
        {id(document)},
        {id(document)},
        set(),
    ]
    pool.admit("1-0")
    assert being.by("0-0", tokens, 100) == {id(document)}
    assert len(walks) == 1
    # one that shares more of the prompt than the others do
    nearer = array("q", [1] * 200 + [100] * 5 + [7] * 50)
    pool.add(OfflineEntry(rid="new", num_tokens=255, arrival_s=1.0, max_new_tokens=8), nearer)
    assert being.by("0-0", tokens, 0) == {id(document), id(pool.index.end("new"))}
    assert len(walks) == 2
    # another prompt is half done now
    assert being.by("1-0", lambda: array("q", [2] * 200), 0) == {id(pool.index.end("1-1").parent)}


def test_groups_that_wait_for_a_prompt_being_computed_are_not_even_named() -> None:
    pool = filled(documents=2, questions=4)
    pool.admit("0-0")
    document = pool.index.end("0-1").parent
    named = [entry.rid for entry in pool.named(3, 0.0, {id(document)})]
    assert named == ["1-0", "1-1", "1-2"]
    assert [entry.rid for entry in pool.named(3, 0.0)] == ["0-1", "0-2", "0-3"]


def test_no_more_candidates_are_probed_than_the_chunk_needs() -> None:
    pool = filled(documents=1, questions=30)
    pool.admit("0-0")
    # each needs 10 tokens beyond its cached document: 4 fill 40
    assert len(select(pool, cached={"0": 200}, wanted=40)) == 4


def test_urgent_then_overdue_then_parked_come_before_the_group_at_work() -> None:
    pool = OfflinePool(PoolSettings(max_wait_s=100.0))

    def add(rid: str, arrival_s: float, deadline_s: float | None, parked: int | None) -> None:
        entry = OfflineEntry(
            rid=rid,
            num_tokens=80,
            arrival_s=arrival_s,
            max_new_tokens=8,
            deadline_s=deadline_s,
            parked_at_step=parked,
        )
        pool.add(entry, array("q", [ord(rid[0])] * 80))

    add("plain", 950.0, None, None)
    add("later", 950.0, 5_000.0, None)
    add("kept", 950.0, None, 3)
    add("old", 100.0, None, None)
    add("due", 950.0, 1_050.0, None)
    order = [entry.rid for entry in pool.candidates(8, now_s=1_000.0)]
    assert order[:3] == ["due", "old", "kept"]
    assert sorted(order[3:]) == ["later", "plain"]


def test_a_request_that_is_already_cached_goes_before_a_cold_group() -> None:
    pool = OfflinePool()
    for rid, first in (("cold", 1), ("warm", 2)):
        entry = OfflineEntry(rid=rid, num_tokens=200, arrival_s=0.0, max_new_tokens=8)
        tokens = array("q", [first] * 200)
        pool.add(entry, tokens, cached_tokens=150 if rid == "warm" else 0)
    assert [entry.rid for entry in pool.candidates(2, now_s=0.0)] == ["warm", "cold"]


def test_as_many_candidates_are_wanted_as_a_growing_chunk_may_need() -> None:
    settings = SelectionSettings(least_wanted_tokens=500, chunks_wanted=2)
    assert wanted_next(8_000, 300, 8_192, settings) == 6_000  # slowly fewer
    assert wanted_next(500, 300, 8_192, settings) == 600
    assert wanted_next(600, 600, 8_192, settings) == 1_200  # a chunk may double every time
    assert wanted_next(600, 0, 8_192, settings) == 500
    assert wanted_next(600, 5_000, 8_192, settings) == 8_192
