"""Turns of the offline pool: nobody starves, shares follow weights, groups stay together."""

from __future__ import annotations

from array import array
from itertools import count, pairwise

from hypothesis import given
from hypothesis import strategies as st

from echo_sglang.policy.offline_pool import OfflineEntry, OfflinePool, PoolSettings
from tests.examples import examples

SIZE = 110
TURN_TOKENS = 1_000.0
MAX_WAIT_S = 50.0
tickets = count(1_000_000)


def add(pool: OfflinePool, rid: str, document: int, **fields: object) -> None:
    """100 tokens of a document and 10 of its own."""
    tokens = array("q", [document] * 100 + [next(tickets)] * 10)
    entry = {"arrival_s": 0.0, "max_new_tokens": 0, **fields}
    pool.add(OfflineEntry(rid=rid, num_tokens=SIZE, **entry), tokens)  # type: ignore[arg-type]


def serve(pool: OfflinePool, now_s: float) -> OfflineEntry:
    """The first candidate runs and ends."""
    entry = pool.admit(pool.candidates(8, now_s)[0].rid)
    pool.produced(entry, 0, ended=True)
    return entry


@examples(40)
@given(
    old=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    stream=st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from(["", "a", "b"]), st.booleans()),
        min_size=1,
        max_size=12,
    ),
)
def test_old_work_runs_within_two_turns_each_whatever_else_keeps_arriving(
    old: list[int], stream: list[tuple[int, str, bool]]
) -> None:
    pool = OfflinePool(PoolSettings(max_wait_s=MAX_WAIT_S, turn_tokens=TURN_TOKENS))
    for number, document in enumerate(old):
        add(pool, f"old-{number}", document, job="old")
    now_s = MAX_WAIT_S
    left = len(old)
    # An overdue request runs at least once per two turns' tokens, plus the request that ends them.
    bound = int(left * (2 * TURN_TOKENS / 10 + 2))
    for served in range(bound):
        document, job, urgent = stream[served % len(stream)]
        for copy in range(2):  # more comes than can be served
            deadline_s = now_s + 1.0 if urgent else None
            rid = f"new-{served}-{copy}"
            add(pool, rid, document, job=job, arrival_s=now_s, deadline_s=deadline_s)
        left -= serve(pool, now_s).rid.startswith("old")
        now_s += 0.001
        if left == 0:
            return
    raise AssertionError(f"{left} of {len(old)} old requests still wait after {bound} others")


@examples(40)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=4),
    group=st.integers(1, 8),
)
def test_served_shares_follow_weights_within_a_turn(weights: list[float], group: int) -> None:
    pool = OfflinePool(PoolSettings(turn_tokens=TURN_TOKENS))
    served = [0.0] * len(weights)
    for job, weight in enumerate(weights):
        for number in range(400):
            document = 1 + job * 1_000 + number // group
            add(pool, f"{job}-{number}", document, job=str(job), weight=weight)
    seen: set[int] = set()
    for _ in range(300):
        rid = pool.candidates(8, 0.0)[0].rid
        document = pool.tokens(rid)[0]
        tokens = 10 if document in seen else SIZE
        seen.add(document)
        entry = pool.admit(rid, computed_tokens=tokens)
        pool.produced(entry, 0, ended=True)
        served[int(entry.job)] += tokens
    virtual = [tokens / weight for tokens, weight in zip(served, weights, strict=True)]
    assert max(virtual) - min(virtual) <= (TURN_TOKENS + SIZE) / min(weights)


@examples(40)
@given(
    jobs=st.integers(1, 3),
    order=st.permutations([(document, number) for document in range(5) for number in range(4)]),
)
def test_a_group_is_never_left_before_its_turn_is_over(
    jobs: int, order: list[tuple[int, int]]
) -> None:
    pool = OfflinePool(PoolSettings(turn_tokens=TURN_TOKENS))
    for job in range(jobs):
        for document, number in order:
            add(pool, f"{job}-{document}-{number}", 1 + 10 * job + document, job=str(job))
    served = [serve(pool, 0.0).rid.rsplit("-", 1)[0] for _ in range(20 * jobs)]
    changes = sum(a != b for a, b in pairwise(served))
    assert changes == 5 * jobs - 1  # every group was visited once


@examples(60)
@given(data=st.data())
def test_accounts_agree_with_what_happened(data: st.DataObject) -> None:
    pool = OfflinePool(PoolSettings(turn_tokens=200.0, max_wait_s=20.0))
    waiting: dict[str, str] = {}
    running: dict[str, OfflineEntry] = {}
    done = 0
    for step in range(50):
        actions = ["add", *["admit", "abort"] * bool(waiting), *["end", "park"] * bool(running)]
        action = data.draw(st.sampled_from(actions))
        if action == "add":
            job = data.draw(st.sampled_from(["", "a", "b"]))
            deadline_s = data.draw(st.none() | st.floats(-5.0, 500.0))
            document = data.draw(st.integers(1, 3))
            fields = {"job": job, "deadline_s": deadline_s, "arrival_s": float(step)}
            add(pool, f"r{step}", document, max_new_tokens=5, **fields)
            waiting[f"r{step}"] = job
        elif action == "admit":
            entry = pool.candidates(4, float(step))[0]
            running[entry.rid] = pool.admit(entry.rid)
            del waiting[entry.rid]
        elif action == "abort":
            rid = data.draw(st.sampled_from(sorted(waiting)))
            pool.remove(rid)
            del waiting[rid]
        else:
            entry = running.pop(data.draw(st.sampled_from(sorted(running))))
            pool.produced(entry, 2, ended=action == "end")
            done += 2
            if action == "park":
                fields = {"job": entry.job, "deadline_s": entry.deadline_s}
                add(pool, entry.rid, 1, max_new_tokens=3, parked_at_step=step, **fields)
                waiting[entry.rid] = entry.job
        jobs = {job.name: job for job in pool.shares.jobs()}
        for name in ("", "a", "b"):
            if name in jobs:
                assert jobs[name].waiting == list(waiting.values()).count(name)
                assert jobs[name].running == sum(e.job == name for e in running.values())
        assert sum(job.output_tokens for job in jobs.values()) == done
        assert sum(o.requests for o in pool.outlook(step + 0.5)) <= len(waiting)
        assert {c.rid for c in pool.candidates(64, step + 0.5)} <= set(waiting)
    for rid in list(waiting):
        pool.remove(rid)
    assert len(pool.deadlines) == 0
    assert pool.shares.num_waiting == 0
