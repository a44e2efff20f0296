"""The hull says what was measured and how far a batch lies beyond it."""

from __future__ import annotations

import math

import pytest

from echo_sglang.domain.batch import BatchShape
from echo_sglang.estimate.hull import PROFILE_REACH, Hull, hull_of, live_hull

DECODE = BatchShape(decode_rows=8, decode_kv_tokens=4_000)
EXTEND = BatchShape().with_chunk(512, 1_000)


def test_what_was_measured_and_less_of_it_is_inside() -> None:
    hull = hull_of([DECODE, EXTEND], PROFILE_REACH)
    assert hull.excess(DECODE) == 0.0
    assert hull.excess(BatchShape(decode_rows=8, decode_kv_tokens=800)) == 0.0
    assert hull.excess(BatchShape().with_chunk(256, 1_000)) == 0.0


def test_excess_is_the_worst_respect_over_the_trusted_reach() -> None:
    hull = hull_of([DECODE], PROFILE_REACH)
    # Twice the rows, thrice the KV, 1.5 times the KV a row: 3 / 1.05.
    shape = BatchShape(decode_rows=16, decode_kv_tokens=12_000)
    assert hull.excess(shape) == pytest.approx(3.0 / PROFILE_REACH)


def test_a_regime_never_seen_is_infinitely_far_away() -> None:
    hull = hull_of([DECODE, EXTEND], PROFILE_REACH)
    mixed = BatchShape(decode_rows=1, decode_kv_tokens=10).with_chunk(16, 0)
    assert math.isinf(hull.excess(mixed))


def test_a_longer_context_a_row_is_outside_though_the_sum_is_not() -> None:
    hull = hull_of([DECODE], PROFILE_REACH)
    assert hull.excess(BatchShape(decode_rows=1, decode_kv_tokens=2_000)) > 1.0


def test_a_longer_prefix_is_outside_though_the_sum_is_not() -> None:
    two = BatchShape().with_chunk(256, 1_000).with_chunk(256, 1_000)
    one = BatchShape().with_chunk(256, 2_000)
    hull = hull_of([two], PROFILE_REACH)
    assert one.extend_prefix_tokens == two.extend_prefix_tokens
    assert hull.excess(one) == pytest.approx(2.0 / PROFILE_REACH)


def test_growing_by_a_batch_takes_it_in_and_an_inner_one_changes_nothing() -> None:
    hull = hull_of([DECODE], PROFILE_REACH)
    assert hull.grown(BatchShape(decode_rows=2, decode_kv_tokens=900)) is hull
    larger = BatchShape(decode_rows=30, decode_kv_tokens=4_000)
    assert hull.grown(larger).excess(larger) == 0.0


def test_a_live_server_may_grow_to_twice_in_every_regime_from_what_one_has_seen() -> None:
    hull = live_hull().grown(DECODE).grown(BatchShape().with_chunk(100, 0))
    twice = BatchShape(decode_rows=16, decode_kv_tokens=8_000).with_chunk(200, 5_000)
    assert hull.excess(twice) <= 1.0
    assert hull.excess(twice.with_chunk(1, 0)) > 1.0


def test_a_reach_below_what_was_measured_makes_no_sense() -> None:
    with pytest.raises(AssertionError):
        Hull(reach=0.9)
