"""What survived a full collection is not walked again until an idle hour has passed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from echo_sglang.adapter.collector import THAW_S, SettledObjects


class Thing:
    """Something the collector tracks; `other` may make a cycle."""

    other: Thing | None = None


@pytest.fixture
def settled() -> Iterator[SettledObjects]:
    found = SettledObjects()
    yield found
    found.close()


def is_walked(thing: object) -> bool:
    return any(found is thing for found in gc.get_objects())


def test_what_survives_a_full_collection_is_not_walked_again(settled: SettledObjects) -> None:
    thing = Thing()
    gc.collect(1)
    settled.settle()
    assert is_walked(thing)  # that was no full one
    gc.collect()
    settled.settle()
    assert not is_walked(thing)
    younger = Thing()
    settled.settle()
    assert is_walked(younger)


def test_what_nobody_refers_to_is_freed_at_once_frozen_or_not(settled: SettledObjects) -> None:
    thing = Thing()
    gc.collect()
    settled.settle()
    gone = weakref.ref(thing)
    del thing
    assert gone() is None


def test_a_frozen_cycle_is_collected_when_an_idle_hour_has_passed(settled: SettledObjects) -> None:
    thing = Thing()
    thing.other = thing
    gc.collect()
    settled.settle()
    gone = weakref.ref(thing)
    del thing
    settled.idle(10.0)
    gc.collect()
    settled.settle()
    settled.idle(10.0 + THAW_S - 1.0)
    assert gone() is not None
    settled.idle(10.0 + THAW_S)
    assert gone() is None


def test_closing_leaves_the_collector_as_it_was() -> None:
    before = list(gc.callbacks)
    settled = SettledObjects()
    gc.collect()
    settled.settle()
    assert gc.get_freeze_count() > 0
    settled.close()
    settled.close()
    assert gc.get_freeze_count() == 0
    assert gc.callbacks == before
