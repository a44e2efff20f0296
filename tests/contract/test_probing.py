"""What the cache holds of a waiting request is looked up once while it cannot have changed."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("sglang.srt.utils")

from echo_sglang.adapter.intake import RequestIntake
from echo_sglang.adapter.offline_queue import OfflineQueue
from echo_sglang.policy.offline_pool import OfflineEntry, PoolSettings
from tests.contract.kv_kit import OFFLINE, CacheKit
from tests.contract.test_offline_queue import put, tokenized

PROMPT = list(range(100, 120))


class Intake:
    """The part of a scheduler that probing needs: a real cache and a real queue."""

    def __init__(self, *, page_size: int = 1) -> None:
        self.kit = CacheKit(page_size=page_size)
        self.intake: Any = RequestIntake.__new__(RequestIntake)
        self.intake.offline_queue = OfflineQueue(PoolSettings(), lambda recv: None)
        self.intake.echo_core = self.kit.core
        self.intake.tree_cache = self.kit.cache
        self.intake.page_size = page_size
        put(self.intake.offline_queue, tokenized("r", PROMPT))

    @property
    def entry(self) -> OfflineEntry:
        entry = self.intake.offline_queue.pool.get("r")
        assert entry is not None
        return entry

    def cached(self) -> int:
        return int(self.intake.probe_cached(self.entry))


@pytest.mark.parametrize("cached", [19, 20])
def test_a_request_that_gave_way_is_looked_up_once(
    cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under overlap the iteration in flight computed its last token too."""
    waiting = Intake()
    waiting.kit.insert(PROMPT[:cached], OFFLINE)
    assert waiting.cached() == cached
    monkeypatch.setattr(waiting.kit.core, "match_full_device_prefix", None)
    assert waiting.cached() == cached


def test_it_is_looked_up_again_once_its_kv_is_evicted() -> None:
    waiting = Intake()
    waiting.kit.insert(PROMPT[:-1], OFFLINE)
    assert waiting.cached() == 19
    waiting.kit.evict(256)
    assert waiting.cached() == 0


def test_a_longer_neighbour_that_splits_its_node_changes_nothing() -> None:
    waiting = Intake()
    waiting.kit.insert(PROMPT[:-1], OFFLINE)
    assert waiting.cached() == 19
    waiting.kit.insert([*PROMPT[:7], 1, 2, 3], OFFLINE)
    assert waiting.cached() == 19


def test_what_is_cached_in_part_may_grow_and_is_looked_up_every_time() -> None:
    waiting = Intake()
    waiting.kit.insert(PROMPT[:8], OFFLINE)
    assert waiting.cached() == 8
    waiting.kit.insert(PROMPT[:12], OFFLINE)
    assert waiting.cached() == 12


@pytest.mark.parametrize("page_size", [1, 4])
def test_a_prompt_that_begins_unlike_anything_cached_is_not_put_together(
    page_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Intake(page_size=page_size)
    waiting.kit.insert([7, *PROMPT[1:]], OFFLINE)
    with monkeypatch.context() as patched:
        patched.setattr(waiting.intake.offline_queue, "tokens", None)
        assert waiting.cached() == 0
    waiting.kit.insert(PROMPT[:8], OFFLINE)
    assert waiting.cached() == 8


def test_a_prompt_in_a_namespace_of_its_own_is_looked_up_whole() -> None:
    waiting = Intake()
    waiting.kit.insert(PROMPT, OFFLINE)
    put(waiting.intake.offline_queue, tokenized("salted", PROMPT, cache_salt="tenant"))
    salted = waiting.intake.offline_queue.pool.get("salted")
    assert int(waiting.intake.probe_cached(salted)) == 0


def test_with_pages_all_whole_pages_before_the_last_token_are_all_there_is() -> None:
    waiting = Intake(page_size=4)
    waiting.kit.insert(PROMPT[:17], OFFLINE)
    assert waiting.cached() == 16
    assert waiting.intake.offline_queue.cached_end("r") is not None
