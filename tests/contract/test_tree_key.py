"""Echo's keys of the cache tree answer as SGLang's."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sglang")

from sglang.srt.mem_cache.radix_cache import RadixKey

from echo_sglang.adapter.tree_key import EchoKey
from tests.examples import examples

TOKENS = st.lists(st.integers(0, 2), max_size=24).map(lambda tokens: array("q", tokens))
NAMES = st.sampled_from([None, "", "a", "b"])


@st.composite
def keys(draw: st.DrawFn) -> RadixKey:
    """Such as SGLang makes them, some capped."""
    tokens = draw(TOKENS)
    limit = draw(st.one_of(st.none(), st.integers(0, 30)))
    return RadixKey(tokens, draw(NAMES), limit=limit, cache_salt=draw(NAMES))


def facts(key: RadixKey) -> tuple[object, ...]:
    return list(key), len(key), key.extra_key, key.cache_salt


@examples(300)
@given(key=keys(), start=st.integers(0, 30), stop=st.integers(0, 30))
def test_a_key_and_its_parts_are_the_same(key: RadixKey, start: int, stop: int) -> None:
    mine = EchoKey.of(key)
    assert facts(mine) == facts(key)
    for part in (slice(start, None), slice(None, stop), slice(start, stop)):
        assert facts(mine[part]) == facts(key[part])
        assert type(mine[part]) is EchoKey
    if start < len(key):
        assert facts(mine[start]) == facts(key[start])


@examples(300)
@given(key=keys(), offset=st.integers(0, 30), page_size=st.sampled_from([1, 4]))
def test_children_are_found_by_the_same(key: RadixKey, offset: int, page_size: int) -> None:
    mine = EchoKey.of(key)
    if offset + page_size > len(key):
        with pytest.raises(IndexError):
            mine.child_key_at(offset, page_size)
    else:
        assert mine.child_key_at(offset, page_size) == key.child_key_at(offset, page_size)


@examples(300)
@given(
    key=keys(), other=keys(), data=st.data(), page_size=st.sampled_from([1, 4]), same=st.booleans()
)
def test_as_many_tokens_match(
    key: RadixKey, other: RadixKey, data: st.DataObject, page_size: int, same: bool
) -> None:
    # Only keys of one namespace are compared; without help they share nothing, mostly.
    begun = other.raw_token_ids()[:3] + key.raw_token_ids() if same else other.token_ids
    other = RadixKey(begun, key.extra_key, limit=other.limit, cache_salt=key.cache_salt)
    whole = key[: len(key) // page_size * page_size]
    offset = data.draw(st.integers(0, len(other)))
    found = EchoKey.of(whole).match_at(other, offset, page_size)
    assert found == whole.match_at(other, offset, page_size)
