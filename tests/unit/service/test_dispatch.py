"""Which lines come next."""

from __future__ import annotations

from itertools import pairwise

import pytest

from echo_sglang.service.dispatch import Pace, Standing, draw, in_turn
from echo_sglang.service.model import Line
from echo_sglang.service.prefix_key import GROUP_BYTES, end_of_group, group_of, prefix_key
from echo_sglang.service.store import Store
from tests.unit.service.store_kit import add_file, create

CHAT = "/v1/chat/completions"


def chat(system: str, user: str) -> bytes:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return prefix_key(CHAT, {"model": "m", "messages": messages})


def test_sorted_keys_keep_documents_together() -> None:
    documents = [f"{number}" * 3000 for number in range(5)]
    asked = [(document, f"question {n}") for n in range(4) for document in documents]
    in_order = sorted(asked, key=lambda each: chat(*each))
    changes = sum(a[0] != b[0] for a, b in pairwise(in_order))
    assert changes == 4


def test_the_longest_shared_prefix_is_nearest() -> None:
    base = "s" * 2000
    keys = [
        chat(base + "a" * 5000, "1"),
        chat(base + "b" * 5000, "2"),
        chat(base + "a" * 5000, "3"),
    ]
    a, b, c = keys
    shared = lambda x, y: next((i for i in range(len(x)) if x[i] != y[i]), len(x))  # noqa: E731
    assert shared(a, c) > shared(a, b) >= GROUP_BYTES


def test_every_key_of_a_group_is_below_its_end() -> None:
    key = chat("s" * 3000, "u")
    group = group_of(key)
    end = end_of_group(group)
    assert end is not None and group <= key < end
    assert end_of_group(b"\xff\xff") is None


@pytest.mark.parametrize(
    "body",
    [{}, {"prompt": None}, {"prompt": [1, 2, 3]}, {"prompt": ["a", "b"]}, {"messages": 7}],
)
def test_any_body_has_a_key_of_one_length(body: dict[str, object]) -> None:
    for endpoint in (CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings"):
        assert len(prefix_key(endpoint, body)) == 44


def standing(name: str, *, open_lines: int, expires_at: float = 1e6) -> Standing:
    return Standing(batch_id=name, created_at=0.0, expires_at=expires_at, open_lines=open_lines)


def test_small_batches_go_before_large_ones() -> None:
    turn = in_turn([standing("large", open_lines=900), standing("small", open_lines=3)], 0.0, 1.0)
    assert turn == ["small", "large"]


def test_a_batch_that_would_miss_its_deadline_goes_first() -> None:
    # 900 lines at 1 line/s take 900 s; 950 s are left, less than a tenth (95 s) to spare.
    tight = standing("tight", open_lines=900, expires_at=950.0)
    assert in_turn([standing("small", open_lines=3), tight], 0.0, 1.0) == ["tight", "small"]
    loose = standing("loose", open_lines=900, expires_at=2000.0)
    assert in_turn([standing("small", open_lines=3), loose], 0.0, 1.0) == ["small", "loose"]


def fill(store: Store, number: int, keys: list[bytes]) -> str:
    batch = create(store, add_file(store, number))
    found = store.work.acquire("one", 100.0, 30.0, 5)
    [lease] = [lease for lease, each in found if each.id == batch.id]
    lines = [
        Line(
            batch_id=batch.id,
            number=n,
            custom_id=str(n),
            offset=0,
            size_bytes=1,
            order_key=key,
        )
        for n, key in enumerate(keys, 1)
    ]
    store.work.add_lines(lease, lines)
    store.work.start(lease, "m", 101.0)
    return batch.id


def test_lines_of_other_batches_ride_along_if_they_share_a_prefix(store: Store) -> None:
    a, b, c = (bytes([n]) * 44 for n in (1, 2, 3))
    first = fill(store, 0, [b, a, b, a])
    second = fill(store, 1, [c, b, c, b, b, b, b])
    drawn = draw(store.work, [first, second], 8, 0)
    assert [line.order_key for line in drawn[:4]] == [a, a, b, b]
    assert sum(line.batch_id == second for line in drawn) <= 4
    assert all(line.order_key == b for line in drawn if line.batch_id == second)
    assert [line.order_key for line in drawn] == sorted(line.order_key for line in drawn)


def test_no_more_is_drawn_than_asked_and_the_first_batch_is_served(store: Store) -> None:
    first = fill(store, 0, [b"\x01" * 44] * 10)
    second = fill(store, 1, [b"\x01" * 44] * 10)
    drawn = draw(store.work, [first, second], 6, 0)
    assert len(drawn) == 6
    assert sum(line.batch_id == first for line in drawn) == 3


def test_a_batch_with_nothing_waiting_lets_the_next_one_go(store: Store) -> None:
    first = fill(store, 0, [])
    second = fill(store, 1, [b"\x01" * 44])
    assert [line.batch_id for line in draw(store.work, [first, second], 6, 0)] == [second]
    assert draw(store.work, [first], 6, 0) == []


def test_the_pace_is_that_of_the_last_minutes() -> None:
    pace = Pace(0.0)
    assert pace.lines_per_s(0.5) is None
    for second in range(1, 601):
        pace.add(4, float(second))
    assert pace.lines_per_s(600.0) == pytest.approx(4.0, rel=0.05)
    for second in range(601, 1201):
        pace.add(1, float(second))
    assert pace.lines_per_s(1200.0) == pytest.approx(1.0, rel=0.05)
    assert pace.lines_per_s(-3000.0) is None  # the clock was set back
