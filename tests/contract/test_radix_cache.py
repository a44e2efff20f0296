"""Echo's radix cache in SGLang: chosen, refused where it does not fit, cutting what it must."""

from __future__ import annotations

import random
from array import array
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("sglang.srt.utils")

from sglang.srt.mem_cache import registry
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, MatchPrefixParams, TreeLock
from sglang.srt.mem_cache.common import release_kv_cache
from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
from sglang.test.kits.unified_radix_cache import fixtures
from sglang.test.kits.unified_radix_cache.config import CacheConfig
from sglang.test.kits.unified_radix_cache.mixins import UnifiedRadixCacheFixtures
from sglang.test.test_utils import CustomTestCase

from echo_sglang.adapter import compat, radix_cache
from echo_sglang.config import EvictionPolicy
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.errors import IncompatibleError
from echo_sglang.kv.cache_policy import CachePolicySettings
from tests.contract.kv_kit import OFFLINE, ONLINE, CacheKit, build_echo_fixture, key_of, path_of

DOCUMENT = list(range(1000, 1040))


def test_only_the_tail_that_no_waiting_prompt_needs_is_evicted() -> None:
    kit = CacheKit()
    kit.insert([*DOCUMENT, 1, 2, 3], OFFLINE)  # a finished question
    kit.wait("next", [*DOCUMENT, 7, 8])
    assert kit.evict(1) == 3
    assert kit.cached([*DOCUMENT, 7]) == len(DOCUMENT)


@pytest.mark.parametrize(("page_size", "kept"), [(1, 40), (16, 32)])
def test_references_and_cuts_are_exact_to_the_page(page_size: int, kept: int) -> None:
    kit = CacheKit(page_size=page_size)
    kit.insert([*DOCUMENT, *range(24)], OFFLINE)  # 64 tokens
    kit.wait("next", [*DOCUMENT, 77, 78])
    kit.evict(1)
    assert kit.cached([*DOCUMENT, 77]) == kept


def test_of_a_document_in_demand_no_more_goes_than_is_wanted() -> None:
    kit = CacheKit(kv_size=2_000)
    long = list(range(5_000, 6_000))
    kit.insert(long, OFFLINE)
    for rid in range(3):
        kit.wait(f"r{rid}", [*long, rid])
    gone = kit.evict(10)
    assert 10 <= gone < 200
    assert kit.cached(long) == 1_000 - gone


def test_a_dead_document_goes_whole_before_one_in_demand_is_cut() -> None:
    kit = CacheKit()
    kit.insert(DOCUMENT, OFFLINE)
    kit.insert(list(range(60)), OFFLINE)
    kit.wait("r", [*DOCUMENT, 1])
    assert kit.evict(5) == 60
    assert kit.cached(DOCUMENT) == len(DOCUMENT)


def first_chunk(kit: CacheKit, tokens: list[int], rid: str) -> TreeLock:
    """A request holds the root when its prefill begins."""
    return kit.go_on(kit.cache.lock(kit.core.root_node.id), tokens, OFFLINE, rid)


def paths(kit: CacheKit) -> list[list[int]]:
    return sorted(kit.path(node) for node in kit.nodes())


def test_chunks_and_answer_of_a_request_are_one_node_and_each_of_others_their_own() -> None:
    kit = CacheKit()
    lock = first_chunk(kit, DOCUMENT[:10], "a")
    for end in (20, 40):
        lock = kit.go_on(lock, DOCUMENT[:end], OFFLINE, "a")
    assert paths(kit) == [DOCUMENT]
    lock = kit.go_on(lock, [*DOCUMENT, 1, 2], OFFLINE, "b")
    lock = kit.go_on(lock, [*DOCUMENT, 1, 2, 3], OFFLINE, "a")
    assert paths(kit) == [DOCUMENT, [*DOCUMENT, 1, 2], [*DOCUMENT, 1, 2, 3]]
    assert kit.cache.protected_size() == 43
    kit.cache.unlock(lock)
    assert kit.cache.protected_size() == 0
    kit.cache.sanity_check()


@pytest.mark.parametrize("others", ["hold", "hang on", "are online"])
def test_a_node_that_is_not_its_requests_alone_stays_as_it_is(others: str) -> None:
    kit = CacheKit()
    lock = first_chunk(kit, DOCUMENT[:10], "a")
    if others == "hold":
        kit.cache.lock(lock.node)
    elif others == "hang on":
        kit.insert([*DOCUMENT[:10], 1], OFFLINE)
    else:
        kit.arrive(DOCUMENT[:10])
    before = paths(kit)
    lock = kit.go_on(lock, DOCUMENT[:20], OFFLINE, "a")
    assert paths(kit) == sorted([*before, DOCUMENT[:20]])
    kit.go_on(lock, DOCUMENT, OFFLINE, "a")
    assert paths(kit) == sorted([*before, DOCUMENT])


def test_what_was_found_of_a_prompt_is_still_there_when_it_has_grown() -> None:
    kit = CacheKit()
    lock = first_chunk(kit, DOCUMENT[:10], "a")
    match = kit.cache.match_prefix(MatchPrefixParams(key=key_of(DOCUMENT[:10])))
    slots = kit.core.collect_full_device_indices(match.last_device_node, kit.core.root_node.id)
    kit.go_on(lock, DOCUMENT, OFFLINE, "a")
    grown = kit.core.collect_full_device_indices(match.last_device_node, kit.core.root_node.id)
    assert match.device_prefix_len == 10
    assert grown[:10].tolist() == slots.tolist()
    assert len(set(grown.tolist())) == len(DOCUMENT)


def test_who_hears_of_blocks_node_by_node_or_evicts_whole_leaves_gets_a_node_for_each_chunk() -> (
    None
):
    kit = CacheKit(policy=EvictionPolicy.CLASS_LRU)
    kit.go_on(first_chunk(kit, DOCUMENT[:10], "a"), DOCUMENT, OFFLINE, "a")
    assert paths(kit) == [DOCUMENT[:10], DOCUMENT]
    config = CacheConfig(page_size=1, kv_size=64)
    for told in (False, True):
        cache, _, _ = build_echo_fixture(config, CachePolicySettings(), enable_kv_cache_events=told)
        assert cache.tree_core.lengthens_nodes is not told


def test_tags_survive_a_split_by_a_match_and_end_with_a_flush() -> None:
    kit = CacheKit()
    kit.insert([1, 2, 3, 4], OFFLINE)
    kit.insert([1, 2, 9], ONLINE)
    tags = {tuple(kit.path(node)): node.classes() for node in kit.nodes()}
    assert tags == {(1, 2): {ONLINE, OFFLINE}, (1, 2, 3, 4): {OFFLINE}, (1, 2, 9): {ONLINE}}
    kit.cache.match_prefix(MatchPrefixParams(key=key_of([1, 2, 3])))
    tags = {tuple(kit.path(node)): node.classes() for node in kit.nodes()}
    assert tags[(1, 2, 3)] == tags[(1, 2, 3, 4)] == {OFFLINE}
    kit.cache.reset()
    assert kit.nodes() == []
    assert len(kit.policy.order) == len(kit.policy.ages) == 0


def test_an_online_arrival_keeps_what_it_will_use_and_teaches_its_age() -> None:
    kit = CacheKit()
    kit.insert([1] * 50, ONLINE)
    kit.insert([2] * 50, ONLINE)
    kit.now_s += 60.0
    kit.policy.relearn(kit.now_s)
    before = kit.policy.reuse._hits[3]
    kit.arrive([*[1] * 50, 5])
    assert kit.policy.reuse._hits[3] == before + 50  # 60 s: the fourth bucket
    kit.evict(20)
    assert kit.cached([1] * 50) == 50
    assert kit.cached([2] * 50) < 50


def test_other_namespaces_share_no_references() -> None:
    kit = CacheKit()
    kit.insert(DOCUMENT, OFFLINE)
    mark = kit.core._namespaces.mark(None, "tenant")
    tokens = array("q", [*DOCUMENT, 1])
    kit.index.insert("salted", mark + tokens)
    kit.core.references_changed(tokens, None, "tenant")
    assert [kit.core.references_of(node) for node in kit.nodes()] == [0]


class Lifecycle(UnifiedRadixCacheFixtures, CustomTestCase):
    """SGLang's own fixtures, used as its conformance suite uses them."""


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("policy", [EvictionPolicy.VALUE, EvictionPolicy.CLASS_LRU])
def test_sglangs_kit_keeps_every_slot_and_a_sane_tree(
    page_size: int, policy: EvictionPolicy
) -> None:
    """Requests run, are released into the tree and evicted again, through SGLang's fixtures."""
    kit = Lifecycle()
    kit.cfg = CacheConfig(page_size=page_size, kv_size=512)
    cache, allocator, rows = build_echo_fixture(kit.cfg, CachePolicySettings(policy=policy))
    free = allocator.available_size()
    rng = random.Random(page_size)
    running: list[Any] = []
    for step in range(120):
        prompt = kit._make_seq(100 * rng.randrange(4), rng.randint(1, 3))
        answer = [10_000 + step] * rng.randint(0, 9)
        if allocator.available_size() < len(prompt) + len(answer):
            cache.evict(EvictParams(num_tokens=len(prompt) + len(answer)))
        running.append(
            kit._make_inflight_req(cache, allocator, rows, prompt, answer, allocated=True)[0]
        )
        if len(running) > 3:
            req = running.pop(rng.randrange(4))
            release_kv_cache(req, cache, checkpoint=rng.random() < 0.8)
        cache.tree_core.sanity_check([], [])
    for req in running:
        release_kv_cache(req, cache, checkpoint=True)
    cache.sanity_check()
    assert allocator.available_size() + cache.evictable_size() == free
    cache.evict(EvictParams(num_tokens=10**6))
    assert allocator.available_size() == free
    assert cache.evictable_size() == cache.protected_size() == 0


@pytest.mark.parametrize(
    ("policy", "parts"), [(EvictionPolicy.VALUE, [24]), (EvictionPolicy.CLASS_LRU, [16, 8])]
)
def test_a_prompt_and_its_answer_are_parted_only_where_eviction_does_not_cut(
    policy: EvictionPolicy, parts: list[int]
) -> None:
    kit = Lifecycle()
    kit.cfg = CacheConfig(page_size=1, kv_size=64)
    cache, allocator, rows = build_echo_fixture(kit.cfg, CachePolicySettings(policy=policy))
    prompt = list(range(100, 116))
    req = kit._make_inflight_req(cache, allocator, rows, prompt, [7] * 8, allocated=True)[0]
    release_kv_cache(req, cache, checkpoint=True)
    nodes = [node for node in cache.tree_core._node_arena.values() if node.key]
    assert sorted((len(node.key) for node in nodes), reverse=True) == parts
    assert allocator.available_size() == 64 - 24


@pytest.mark.parametrize("page_size", [1, 16])
def test_what_a_preempted_request_leaves_is_of_its_class(page_size: int) -> None:
    kit = Lifecycle()
    kit.cfg = CacheConfig(page_size=page_size, kv_size=512)
    cache, allocator, rows = build_echo_fixture(kit.cfg, CachePolicySettings())
    shared = kit._make_seq(100, 2)
    for first, offline in ((200, True), (300, False)):
        prompt = [*shared, *kit._make_seq(first, 2)]
        req = kit._make_inflight_req(cache, allocator, rows, prompt, [7] * 16, allocated=True)[0]
        req.is_offline = offline
        release_kv_cache(req, cache, checkpoint=True)
    both = {ServiceClass.ONLINE, ServiceClass.OFFLINE}
    found: set[int] = set()
    for node in cache.tree_core._node_arena.values():
        path = path_of(cache.tree_core, node)
        begun = [first for first in (200, 300) if first in path]
        expected = {(): both, (200,): {ServiceClass.OFFLINE}, (300,): {ServiceClass.ONLINE}}
        if path:
            assert node.classes() == expected[tuple(begun)], path
            found.update(begun, path[-1:])
    assert found >= {200, 300, 7, shared[-1]}


def context(**changes: Any) -> Any:
    params = SimpleNamespace(
        enable_session_radix_cache=changes.pop("enable_session_radix_cache", False),
        is_eagle=changes.pop("is_eagle", False),
        component_registry_override=None,
        tree_core_backend=None,
    )
    fields = {
        "params": params,
        "disable_radix_cache": False,
        "is_hybrid_swa": False,
        "is_hybrid_ssm": False,
        "enable_hierarchical_cache": False,
    }
    return SimpleNamespace(**fields | changes)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("is_hybrid_swa", "sliding-window"),
        ("enable_hierarchical_cache", "--enable-hierarchical-cache"),
        ("enable_session_radix_cache", "--enable-session-radix-cache"),
        ("is_eagle", "speculative"),
    ],
)
def test_a_cache_whose_parts_are_not_ranked_is_refused(field: str, said: str) -> None:
    with pytest.raises(IncompatibleError, match=said) as refusal:
        radix_cache.build_echo_cache(context(**{field: True}))
    assert "--echo-eviction lru" in str(refusal.value)


def test_a_state_space_model_is_refused_with_what_serves_it() -> None:
    with pytest.raises(IncompatibleError, match=r"Mamba.*--echo-off"):
        radix_cache.build_echo_cache(context(is_hybrid_ssm=True))


def test_without_a_radix_cache_sglangs_own_is_built() -> None:
    with mock.patch.object(radix_cache, "default_radix_cache_factory", return_value="stock"):
        given = context(disable_radix_cache=True, is_hybrid_swa=True)
        assert radix_cache.build_echo_cache(given) == "stock"
    assert given.params.tree_core_backend is None


FLAGS = {
    "disable_radix_cache": False,
    "radix_cache_backend": "echo",
    "radix_eviction_policy": "lru",
    "enable_hierarchical_cache": False,
    "enable_session_radix_cache": False,
    "enable_lmcache": False,
    "enable_flexkv": False,
    "enable_unified_cache_external_linker": False,
}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("radix_cache_backend", "flexkv"),
        ("radix_eviction_policy", "lfu"),
        ("enable_hierarchical_cache", True),
        ("enable_session_radix_cache", True),
        ("enable_lmcache", True),
        ("enable_flexkv", True),
        ("enable_unified_cache_external_linker", True),
    ],
)
def test_a_flag_that_chooses_another_cache_is_refused_by_name(flag: str, value: Any) -> None:
    given = SimpleNamespace(**FLAGS | {flag: value})
    with pytest.raises(IncompatibleError, match=r"--echo-eviction lru") as refusal:
        compat.check_eviction(given, EvictionPolicy.VALUE, {})
    assert "--" + flag.replace("_", "-") in str(refusal.value)
    compat.check_eviction(given, EvictionPolicy.LRU, {})


def test_another_tree_core_is_refused_by_name() -> None:
    variable = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"
    given = SimpleNamespace(**FLAGS)
    with pytest.raises(IncompatibleError, match=f"{variable}=rust"):
        compat.check_eviction(given, EvictionPolicy.VALUE, {variable: "rust"})
    compat.check_eviction(given, EvictionPolicy.VALUE, {variable: "echo"})


def test_the_flags_that_are_judged_are_sglangs() -> None:
    import inspect

    from sglang.srt.server_args import ServerArgs

    assert set(FLAGS) <= set(inspect.signature(ServerArgs).parameters)
    assert hasattr(registry, "register_radix_cache_backend")


@pytest.mark.parametrize("page_size", [1, 4])
def test_a_preempted_request_of_a_sliding_window_model_keeps_its_kv_in_sglangs_cache(
    page_size: int,
) -> None:
    """What `--echo-eviction lru` leaves to SGLang: giving way as Echo makes rows do it."""
    kit = Lifecycle()
    kit.cfg = CacheConfig(
        page_size=page_size,
        components=(ComponentType.FULL, ComponentType.SWA),
        sliding_window_size=8,
    )
    with mock.patch.object(fixtures, "get_device", lambda: "cpu"):
        cache, allocator, rows = fixtures.build_fixture(kit.cfg)
    free = allocator.full_attn_allocator.available_size()
    prompt = kit._make_seq(100, 12 // page_size)
    for _ in range(3):
        req, _ = kit._make_inflight_req(cache, allocator, rows, prompt, [7] * 8, allocated=True)
        release_kv_cache(req, cache, checkpoint=True)
        cache.sanity_check()
        match = cache.match_prefix(MatchPrefixParams(key=key_of([*prompt, *[7] * 8])))
        assert match.device_prefix_len == len(prompt) + 8
    cache.evict(EvictParams(num_tokens=10**6, swa_num_tokens=10**6))
    assert allocator.full_attn_allocator.available_size() == free
