"""Who leaves the cache first, and what that follows."""

from __future__ import annotations

import random

import pytest

from echo_sglang.config import EvictionPolicy
from echo_sglang.kv.ages import AgeBuckets
from echo_sglang.kv.cache_policy import CachePolicy, CachePolicySettings
from echo_sglang.kv.eviction_order import EvictionOrder
from echo_sglang.kv.reuse import AGE_EDGES_S, NUM_BUCKETS


class World:
    """Leaves of 100 tokens on a clock; `references` is what the prefix index would say."""

    def __init__(self, **settings: object) -> None:
        self.policy: CachePolicy[str] = CachePolicy(CachePolicySettings(**settings))  # type: ignore[arg-type]
        self.references: dict[str, int] = {}
        self.now_s = 1_000.0

    def online(self, leaf: str) -> None:
        self.policy.idle(leaf, used_s=self.now_s, tokens=100, now_s=self.now_s)
        self.policy.leaf(leaf, tokens=100, now_s=self.now_s)

    def offline(self, leaf: str, references: int = 0) -> None:
        self.references[leaf] = references
        self.policy.leaf(leaf, tokens=100, now_s=self.now_s)

    def order(self, *, for_offline: bool = False) -> list[str]:
        """Evict everything."""
        self.policy.rank(lambda leaf: self.references.get(leaf, 0))
        gone = []
        while (victim := self.policy.victim(for_offline=for_offline)) is not None:
            gone.append(victim)
            self.policy.not_leaf(victim)
            self.policy.held(victim)
        return gone


def test_dead_offline_kv_goes_first_then_by_future_hits() -> None:
    world = World(online_weight=4.0)
    world.offline("needed 9 times", 9)
    world.online("chat")
    world.offline("needed once", 1)
    world.offline("dead")
    worth = world.policy.online_worth(0)
    assert 1 < worth < 4  # the prior: likely to come back, but not certain
    assert world.order() == ["dead", "needed once", "chat", "needed 9 times"]


def test_among_equals_the_least_recently_used_goes_first() -> None:
    world = World()
    for leaf in ("first", "second", "third"):
        world.offline(leaf, 2)
    world.policy.rank(lambda leaf: 2)
    world.policy.not_leaf("first")  # used again
    world.offline("first", 2)
    assert world.order() == ["second", "third", "first"]


def test_references_that_fall_and_rise_reorder_at_once() -> None:
    world = World()
    for leaf, references in (("a", 1), ("b", 2), ("c", 3)):
        world.offline(leaf, references)
    world.policy.rank(world.references.__getitem__)
    world.policy.refer("c", 0)
    world.policy.refer("a", 7)
    assert world.order() == ["c", "b", "a"]


def test_a_chat_nobody_came_back_to_falls_below_a_document_in_demand() -> None:
    world = World()
    world.online("chat")
    world.offline("document", 1)
    world.policy.rank(lambda leaf: world.references.get(leaf, 0))
    assert world.policy.worth("chat") > world.policy.worth("document")
    world.now_s += AGE_EDGES_S[-1]
    world.policy.relearn(world.now_s)
    assert world.policy.worth("chat") < world.policy.worth("document")
    assert world.order() == ["chat", "document"]


def test_a_node_that_both_classes_use_is_worth_the_sum() -> None:
    world = World()
    world.online("both")
    world.references["both"] = 5
    world.policy.rank(world.references.__getitem__)
    assert world.policy.worth("both") == pytest.approx(5 + world.policy.online_worth(0))


def test_offline_work_takes_warm_chats_only_when_nothing_else_is_left() -> None:
    world = World()
    world.online("chat")
    world.offline("document", 50)
    assert world.policy.protected_tokens() == 100
    assert world.order(for_offline=True) == ["document", "chat"]


def test_without_weight_online_kv_is_not_protected() -> None:
    world = World(online_weight=0.0)
    world.online("chat")
    world.offline("document", 1)
    assert world.policy.protected_tokens() == 0
    assert world.order(for_offline=True) == ["chat", "document"]


def test_class_lru_knows_the_class_and_nothing_else() -> None:
    world = World(policy=EvictionPolicy.CLASS_LRU)
    world.online("chat")
    world.offline("needed", 9)
    world.offline("dead")
    assert world.policy.protected_tokens() == 0
    assert world.order() == ["needed", "dead", "chat"]


def test_a_hit_teaches_that_its_age_comes_back() -> None:
    patient, impatient = World(), World()
    for world in (patient, impatient):
        for turn in range(200):
            world.online(f"chat {turn}")
            world.now_s += 45.0  # bucket 3
            world.policy.relearn(world.now_s)
            if world is patient:
                world.policy.online_hit(f"chat {turn}", 100)
            world.policy.not_leaf(f"chat {turn}")
            world.policy.held(f"chat {turn}")
        world.policy.relearn(world.now_s)
    assert patient.policy.online_worth(3) > 3.0
    assert impatient.policy.online_worth(3) < 1.0


def test_a_leaf_in_use_again_before_it_is_ranked_is_never_ranked() -> None:
    world = World()
    for leaf in range(10):
        world.offline(str(leaf))
    world.policy.rank(lambda leaf: 0, keep=4)
    assert len(world.policy.order) == 6
    world.policy.not_leaf("9")
    assert world.order() == [str(leaf) for leaf in range(9)]


def test_the_order_agrees_with_sorting_everything_each_time() -> None:
    rng = random.Random(5)
    order: EvictionOrder[int] = EvictionOrder()
    model: dict[int, tuple[int, int, int]] = {}  # leaf -> queue, references, ticket
    worth = [rng.uniform(0, 5) for _ in range(NUM_BUCKETS)] + [0.0]
    for ticket in range(3_000):
        leaf = rng.randrange(60)
        if leaf not in model:
            model[leaf] = (rng.randrange(NUM_BUCKETS + 1), rng.randrange(4), ticket)
            order.add(leaf, queue=model[leaf][0], references=model[leaf][1])
        elif (action := rng.randrange(3)) == 0:
            assert order.discard(leaf) == model.pop(leaf)[0]
        elif action == 1:
            queue, references, since = model[leaf]
            model[leaf] = (queue, rng.randrange(4), since)
            order.refer(leaf, model[leaf][1])
        else:
            queue, references, since = model[leaf]
            model[leaf] = (rng.randrange(NUM_BUCKETS + 1), references, since)
            order.move(leaf, model[leaf][0])
        queues = set(rng.sample(range(NUM_BUCKETS + 1), 5))
        passed = set(rng.sample(range(60), 5))
        ranks = [
            (worth[q] + r, t, known)
            for known, (q, r, t) in model.items()
            if q in queues and known not in passed
        ]
        expected = min(ranks)[2] if ranks else None
        assert order.victim(worth.__getitem__, queues=queues, passed_over=passed) == expected
    assert len(order) == len(model)


def test_items_age_through_the_buckets_and_nothing_stale_moves() -> None:
    ages: AgeBuckets[str] = AgeBuckets()
    assert ages.enter("old", used_s=0.0, tokens=10, now_s=5.0) == 1
    assert ages.enter("new", used_s=5.0, tokens=1, now_s=5.0) == 0
    ages.enter("new", used_s=7.5, tokens=2, now_s=7.5)  # used again: its first timer is stale
    assert list(ages.advance(8.0)) == []
    assert dict(ages.advance(10.5)) == {"old": 2, "new": 1}
    assert [ages.tokens_in(b) for b in range(3)] == [0, 2, 10]
    assert dict(ages.advance(1e9)) == {"old": NUM_BUCKETS - 1, "new": NUM_BUCKETS - 1}
    assert ages.leave("old") == NUM_BUCKETS - 1
    assert ages.leave("old") is None
    assert ages.tokens_in(NUM_BUCKETS - 1) == 2


def test_timers_of_busy_items_do_not_pile_up() -> None:
    ages: AgeBuckets[int] = AgeBuckets()
    for moment in range(50_000):
        ages.enter(moment % 10, used_s=moment * 1e-6, tokens=1, now_s=moment * 1e-6)
    assert len(ages) == 10
    assert len(ages._due) <= 4 * 10 + 1024


def test_what_enters_and_leaves_before_anybody_asks_was_never_in_a_bucket() -> None:
    ages: AgeBuckets[str] = AgeBuckets()
    assert ages.enter("a", used_s=0.0, tokens=100, now_s=0.0) == 0
    assert ages.enter("b", used_s=-5.0, tokens=10, now_s=0.0) == 1
    assert ("a" in ages, ages.bucket("a"), ages.tokens_of("b"), len(ages)) == (True, 0, 10, 2)
    ages.resize("b", 7)
    assert ages.leave("a") == 0 and ages.leave("a") is None
    assert (ages.tokens_in(0), ages.tokens_in(1), len(ages)) == (0, 7, 1)
    # sorted in now: the same answers, and time moves it
    assert (ages.bucket("b"), ages.tokens_of("b")) == (1, 7)
    assert list(ages.advance(AGE_EDGES_S[1] - 5.0)) == [("b", 2)]
