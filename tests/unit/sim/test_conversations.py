"""Chats come back with all that was said before."""

from __future__ import annotations

from itertools import pairwise

import pytest

from echo_sglang.errors import WorkloadError
from echo_sglang.sim.conversations import Conversations

CHATS = Conversations(chats_per_s=0.5, window_s=400.0, mean_turns=4.0, think_s=20.0)


def test_every_turn_begins_with_the_turn_before_it() -> None:
    by_chat: dict[str, list[tuple[int, tuple[object, ...], int]]] = {}
    for request in CHATS.requests(3):
        _, chat, turn = request.rid.split("-")
        by_chat.setdefault(chat, []).append((int(turn), request.prompt, request.output_tokens))
    assert any(len(turns) > 3 for turns in by_chat.values())
    for turns in by_chat.values():
        assert [turn for turn, _, _ in turns] == list(range(len(turns)))
        for (_, before, answered), (_, after, _) in pairwise(turns):
            assert after[: len(before)] == before
            assert after[len(before)].tokens == answered  # type: ignore[attr-defined]
            assert len(after) == len(before) + 2


def test_turns_come_in_order_of_time_within_the_window_and_follow_the_seed() -> None:
    times_s = [request.arrival_s for request in CHATS.requests(3)]
    assert times_s == sorted(times_s)
    assert times_s[0] >= 0.0 and times_s[-1] < CHATS.window_s
    assert CHATS.requests(3) == CHATS.requests(3)
    assert CHATS.requests(3) != CHATS.requests(4)


def test_the_number_of_turns_is_as_asked() -> None:
    long = Conversations(chats_per_s=5.0, window_s=600.0, mean_turns=4.0, think_s=0.1)
    requests = long.requests(1)
    chats = sum(request.rid.endswith("-0") for request in requests)
    assert len(requests) / chats == pytest.approx(4.0, rel=0.06)


@pytest.mark.parametrize(
    "changes", [{"chats_per_s": 0.0}, {"window_s": -1.0}, {"mean_turns": 0.5}, {"think_s": 0.0}]
)
def test_impossible_chats_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(WorkloadError, match="above 0"):
        Conversations(**{"chats_per_s": 1.0, "window_s": 10.0} | changes)
