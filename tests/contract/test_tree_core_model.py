"""Echo's tree core under random use, against a brute-force model after every step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

pytest.importorskip("sglang.srt.utils")

from echo_sglang.adapter.tree_core import SAME_USE_S
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.kv.reuse import NUM_BUCKETS
from tests.contract.kv_kit import OFFLINE, ONLINE, CacheKit, key_of
from tests.examples import examples

sequences = st.lists(st.integers(0, 2), min_size=1, max_size=24)
classes = st.sampled_from([ONLINE, OFFLINE])


class TreeAgainstModel(RuleBasedStateMachine):
    """Model: for every cached prefix the classes that used it, and the waiting prompts."""

    page_size = 1

    def __init__(self) -> None:
        super().__init__()
        self.kit = CacheKit(kv_size=96, page_size=self.page_size)
        self.used: dict[tuple[int, ...], set[ServiceClass]] = {}
        self.waiting: dict[str, list[int]] = {}
        self.locks: list[tuple[str, Any]] = []
        self.next_rid = 0

    def _new_rid(self) -> str:
        self.next_rid += 1
        return f"r{self.next_rid}"

    def _use(self, tokens: list[int], service_class: ServiceClass) -> None:
        for end in range(self.page_size, len(tokens) + 1, self.page_size):
            self.used.setdefault(tuple(tokens[:end]), set()).add(service_class)

    def _forget_evicted(self) -> None:
        cached = set()
        for node in self.kit.nodes():
            path = self.kit.path(node)
            start = len(path) - len(node.key)
            for end in range(start + self.page_size, len(path) + 1, self.page_size):
                cached.add(tuple(path[:end]))
        self.used = {prefix: used for prefix, used in self.used.items() if prefix in cached}
        assert set(self.used) == cached

    @rule(tokens=sequences, service_class=classes)
    def insert(self, tokens: list[int], service_class: ServiceClass) -> None:
        missing = len(tokens) - self.kit.allocator.available_size()
        if missing > 0:
            self.evict(missing, for_offline=service_class is OFFLINE)
        if self.kit.insert(tokens, service_class):
            self._use(tokens, service_class)

    @rule(tokens=sequences)
    def wait(self, tokens: list[int]) -> None:
        rid = self._new_rid()
        self.kit.wait(rid, tokens)
        self.waiting[rid] = tokens

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        rid = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[rid]
        self.kit.go(rid)

    @rule(tokens=sequences)
    def arrive(self, tokens: list[int]) -> None:
        node = self.kit.core._descend(key_of(tokens))[0]
        self._use(self.kit.path(node), ONLINE)
        self.kit.arrive(tokens)

    @rule(tokens=sequences)
    def probing_changes_nothing(self, tokens: list[int]) -> None:
        before = [(n.id, n.last_access_time, len(n.key)) for n in self.kit.nodes()]
        self.kit.cached(tokens)
        assert before == [(n.id, n.last_access_time, len(n.key)) for n in self.kit.nodes()]

    @rule(tokens=sequences)
    def match_and_lock(self, tokens: list[int]) -> None:
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams

        probed = self.kit.cached(tokens)
        match = self.kit.cache.match_prefix(MatchPrefixParams(key=key_of(tokens)))
        assert match.device_prefix_len == probed
        self.locks.append((self._new_rid(), self.kit.cache.lock(match.last_device_node)))

    @precondition(lambda self: self.locks)
    @rule(data=st.data(), more=sequences, service_class=classes)
    def go_on_from_what_is_held(
        self, data: st.DataObject, more: list[int], service_class: ServiceClass
    ) -> None:
        """As the next chunk of a prompt does, whose walk starts at what the request holds."""
        place = data.draw(st.integers(0, len(self.locks) - 1))
        rid, lock = self.locks[place]
        held = self.kit.path(self.kit.core.node_by_id(lock.node))
        tokens = held + more[: len(more) // self.page_size * self.page_size]
        if len(tokens) - len(held) > self.kit.allocator.available_size():
            return
        self.locks[place] = rid, self.kit.go_on(lock, tokens, service_class, rid)
        assert self.kit.cached(tokens) == len(tokens)
        self._use(tokens, service_class)

    @precondition(lambda self: self.locks)
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        _, lock = self.locks.pop(data.draw(st.integers(0, len(self.locks) - 1)))
        self.kit.cache.unlock(lock)

    @rule(tokens=st.integers(1, 30), for_offline=st.booleans())
    def evict(self, tokens: int, for_offline: bool) -> None:
        policy = self.kit.policy
        evictable = self.kit.cache.evictable_size()
        enough = tokens <= evictable - policy.protected_tokens()
        warm = {
            node.id
            for node in self.kit.nodes()
            if (bucket := policy.ages.bucket(node)) is not None and policy.protects(bucket)
        }
        assert self.kit.evict(tokens, for_offline=for_offline) >= min(tokens, evictable)
        if for_offline and enough:
            assert warm <= {node.id for node in self.kit.nodes()}
        self._forget_evicted()

    @rule(seconds=st.sampled_from([0.01, 1.0, 9.0, 100.0, 5000.0]))
    def time_passes(self, seconds: float) -> None:
        self.kit.now_s += seconds
        self.kit.policy.relearn(self.kit.now_s)

    @precondition(lambda self: not self.locks)
    @rule()
    def flush(self) -> None:
        self.kit.cache.reset()
        self.kit.allocator.clear()
        self.used = {}

    @invariant()
    def references_are_exact(self) -> None:
        self.kit.policy.rank(self.kit.core.references_of)
        for node in self.kit.nodes():
            path = self.kit.path(node)
            expected = sum(prompt[: len(path)] == path for prompt in self.waiting.values())
            assert self.kit.core.references_of(node) == expected
            if node in self.kit.policy.order:
                assert self.kit.policy.order.references(node) == expected

    @invariant()
    def the_order_holds_exactly_the_evictable_leaves(self) -> None:
        leaves = self.kit.core.evictable_device_leaves
        assert len(self.kit.policy.order) == len(leaves)
        assert all(leaf in self.kit.policy.order for leaf in leaves)

    @invariant()
    def nodes_know_who_used_them(self) -> None:
        for node in self.kit.nodes():
            assert node.classes() == self.used[tuple(self.kit.path(node))]

    @invariant()
    def exactly_the_idle_online_nodes_age(self) -> None:
        ages = self.kit.policy.ages
        idle = [node for node in self.kit.nodes() if node.online and not node.held]
        assert len(ages) == len(idle)
        assert all(node in ages and ages.tokens_of(node) == len(node.key) for node in idle)
        assert sum(map(ages.tokens_in, range(NUM_BUCKETS))) == sum(len(n.key) for n in idle)

    @invariant()
    def no_child_was_used_online_after_its_parent(self) -> None:
        for node in self.kit.nodes():
            parent = node.parent
            if node.online and parent is not self.kit.core.root_node:
                assert parent.online
                assert parent.online_used_s >= node.online_used_s - SAME_USE_S

    @invariant()
    def the_next_victim_is_worth_least(self) -> None:
        policy = self.kit.policy
        victim = policy.victim(for_offline=False)
        if victim is not None:
            least = min(policy.worth(leaf) for leaf in self.kit.core.evictable_device_leaves)
            assert policy.worth(victim) == least

    @invariant()
    def sglang_finds_the_tree_sane(self) -> None:
        if not self.locks:
            self.kit.cache.sanity_check()

    def teardown(self) -> None:
        for _, lock in self.locks:
            self.kit.cache.unlock(lock)
        self.kit.cache.sanity_check()


class PagedTreeAgainstModel(TreeAgainstModel):
    page_size = 4


BUDGET = settings(examples(50), stateful_step_count=60)
TestTreeCore = TreeAgainstModel.TestCase
TestTreeCore.settings = BUDGET
TestPagedTreeCore = PagedTreeAgainstModel.TestCase
TestPagedTreeCore.settings = BUDGET
