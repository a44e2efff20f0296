"""OfflinePool: nothing is lost, nothing is named twice, siblings come together."""

from __future__ import annotations

from array import array
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from echo_sglang.policy.offline_pool import OfflineEntry, OfflinePool
from tests.examples import examples


def add(pool: OfflinePool, rid: str, tokens: list[int], arrival_s: float = 0.0) -> None:
    entry = OfflineEntry(rid=rid, num_tokens=len(tokens), arrival_s=arrival_s, max_new_tokens=8)
    pool.add(entry, array("q", tokens))


@examples(60)
@given(
    order=st.permutations([(doc, question) for doc in range(6) for question in range(5)]),
    limit=st.integers(1, 12),
)
def test_shuffled_questions_are_admitted_document_by_document(
    order: list[tuple[int, int]], limit: int
) -> None:
    pool = OfflinePool()
    for doc, question in order:
        add(pool, f"{doc}-{question}", [doc + 1] * 100 + [50 + question] * 10)
    admitted = []
    while len(pool):
        candidates = pool.candidates(limit, now_s=1.0)
        assert len({c.rid for c in candidates}) == len(candidates) <= limit
        admitted.append(candidates[0].rid)
        pool.admit(candidates[0].rid)
    assert sorted(admitted) == sorted(f"{d}-{q}" for d, q in order)
    documents = [rid.split("-")[0] for rid in admitted]
    changes = sum(a != b for a, b in pairwise(documents))
    assert changes == 5  # six documents, each visited once


@examples(80)
@given(st.data())
def test_every_request_leaves_the_pool_exactly_once(data: st.DataObject) -> None:
    pool = OfflinePool()
    alive: set[str] = set()
    for step in range(40):
        action = data.draw(st.sampled_from(["add", "admit", "abort", "park"]))
        if action == "add" or not alive:
            tokens = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=90))
            add(pool, f"r{step}", tokens, arrival_s=step)
            alive.add(f"r{step}")
        elif action == "abort":
            rid = data.draw(st.sampled_from(sorted(alive)))
            assert pool.remove(rid).rid == rid
            alive.discard(rid)
        else:
            first = pool.candidates(1, now_s=step)[0]
            tokens = pool.tokens(first.rid)
            taken = pool.admit(first.rid)
            alive.discard(first.rid)
            if action == "park":
                add(pool, taken.rid, [*tokens, 9], taken.arrival_s)
                alive.add(taken.rid)
        assert set(pool.rids()) == alive
        assert len(pool) == len(alive)
        named = [c.rid for c in pool.candidates(64, now_s=step)]
        assert set(named) <= alive
        assert bool(named) == bool(alive)
