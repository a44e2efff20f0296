"""The designed load reaches the corners and stays within what a server allows."""

from __future__ import annotations

import itertools
import random
from dataclasses import asdict

import pytest

from echo_sglang.cli.sweep import (
    Limits,
    Reach,
    Scene,
    affordable_kv,
    corner_scenes,
    longest_prompt,
    next_rung,
    random_scenes,
    rows_scene,
)
from echo_sglang.errors import ServerError

SERVERS = [
    Limits(chunk_tokens=512, rows=16, kv_tokens=10_000, context_tokens=4096, vocabulary=49_152),
    Limits(chunk_tokens=8192, rows=256, kv_tokens=400_000, context_tokens=131_072, vocabulary=1000),
    Limits(chunk_tokens=64, rows=1, kv_tokens=600, context_tokens=256, vocabulary=300),
    Limits(chunk_tokens=4096, rows=64, kv_tokens=2048, context_tokens=2048, vocabulary=300),
]


RNG = random.Random(1)


def reach(limits: Limits, *, long_rows: int | None = None) -> Reach:
    """All that the server allows, or only so many rows after the longest prefix."""
    return Reach(**asdict(limits), long_rows=long_rows or limits.rows)


def scenes_of(limits: Limits, count: int = 200) -> list[Scene]:
    return [
        longest_prompt(limits),
        rows_scene(limits, limits.rows),
        *corner_scenes(reach(limits)),
        *itertools.islice(random_scenes(reach(limits), random.Random(1)), count),
    ]


@pytest.mark.parametrize("limits", SERVERS)
def test_no_request_is_longer_than_the_context_and_no_scene_fuller_than_the_pool(
    limits: Limits,
) -> None:
    for scene in scenes_of(limits):
        row = scene.shared_tokens + scene.own_tokens + scene.outputs
        assert scene.rows == 0 or row <= limits.context_tokens, scene
        assert 0 <= scene.rows <= limits.rows, scene
        own_kv = scene.rows * (scene.own_tokens + scene.outputs)
        assert scene.shared_tokens + own_kv <= limits.kv_tokens, scene
        for prompt in itertools.chain(*scene.groups):
            assert 1 <= prompt.chunk_tokens <= limits.chunk_tokens, scene
            assert prompt.prefix_tokens + prompt.chunk_tokens < limits.context_tokens, scene


@pytest.mark.parametrize("limits", SERVERS[:2])
def test_the_corners_are_reached(limits: Limits) -> None:
    scenes = scenes_of(limits, 0)
    prompts = [prompt for scene in scenes for group in scene.groups for prompt in group]
    decode_kv = [s.rows * (s.shared_tokens + s.own_tokens) for s in scenes]
    assert max(p.chunk_tokens for p in prompts) >= limits.longest_chunk
    assert max(p.prefix_tokens for p in prompts) == limits.stem_tokens
    assert min(p.chunk_tokens for p in prompts) == 1
    assert {s.rows for s in scenes} >= {0, 1, limits.rows}
    assert max(decode_kv) >= limits.rows * limits.stem_tokens
    assert max(s.rows * s.own_tokens for s in scenes) >= 0.7 * limits.kv_tokens
    assert any(s.rows and s.groups for s in scenes)


def test_rows_of_random_scenes_differ_and_none_is_longer_than_the_scene_says() -> None:
    scene = Scene(name="s", rows=8, shared_tokens=700, own_tokens=70, uneven=True)
    rows = scene.kv_of_rows()
    assert rows[0] == (700, 70)
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] == (210, 21)
    assert len(set(rows)) == 8
    assert all(s.uneven for s in itertools.islice(random_scenes(reach(SERVERS[1]), RNG), 50))


def test_rows_of_an_even_scene_are_equal_and_each_has_a_token_of_its_own() -> None:
    assert Scene(name="s", rows=3, shared_tokens=5, own_tokens=1).kv_of_rows() == [(5, 1)] * 3
    assert Scene(name="s", rows=1, own_tokens=9, uneven=True).kv_of_rows() == [(0, 9)]
    assert Scene(name="s", rows=2, own_tokens=1, uneven=True).kv_of_rows()[-1] == (0, 1)
    assert Scene(name="s").kv_of_rows() == []


def test_rows_that_are_too_slow_after_the_longest_prefix_still_run_after_a_shorter_one() -> None:
    limits = reach(SERVERS[1], long_rows=4)
    scenes = [
        *corner_scenes(limits),
        *itertools.islice(random_scenes(limits, random.Random(1)), 200),
    ]
    assert max(s.rows for s in scenes) == 256
    assert max(s.rows * s.shared_tokens for s in scenes) <= 4 * limits.stem_tokens
    assert any(s.rows > 4 and s.shared_tokens > 100 for s in scenes)


def test_no_more_kv_is_filled_than_the_time_allows_but_enough_for_every_scene() -> None:
    limits = SERVERS[1]
    assert affordable_kv(limits, 512, chunk_s=1.0, allowed_s=27.0) == 27 * 512
    assert affordable_kv(limits, 8192, chunk_s=0.5, allowed_s=27.0) == limits.kv_tokens
    assert affordable_kv(limits, 512, chunk_s=60.0, allowed_s=27.0) == 8 * 512


def climb(most: int, each_s: float, allowed_s: float) -> list[int]:
    """The climb on a server where a scene takes `each_s` for every row or token."""
    climbed, following = [0], 1
    while following > climbed[-1]:
        climbed.append(following)
        following = next_rung(following, each_s * following, most=most, allowed_s=allowed_s)
    return climbed[1:]


def test_the_climb_ends_at_the_most_where_that_is_quick() -> None:
    assert climb(256, each_s=0.01, allowed_s=5.4) == [1, 4, 16, 64, 256]
    assert climb(330, each_s=0.0, allowed_s=5.4) == [1, 4, 16, 64, 256, 330]
    assert climb(1, each_s=0.01, allowed_s=5.4) == [1]


def test_the_climb_ends_where_a_scene_would_take_more_than_its_share() -> None:
    assert climb(256, each_s=0.5, allowed_s=5.4) == [1, 4, 10]
    assert climb(256, each_s=60.0, allowed_s=5.4) == [1]
    assert climb(256, each_s=0.1, allowed_s=1.9) == [1, 4, 16]


def test_the_same_seed_gives_the_same_scenes() -> None:
    first, again = (scenes_of(SERVERS[0]) for _ in range(2))
    assert first == again


def test_random_scenes_spread_over_magnitudes() -> None:
    limits = SERVERS[0]
    scenes = scenes_of(limits)
    chunks = [p.chunk_tokens for s in scenes for g in s.groups for p in g]
    for low, high in ((1, 8), (8, 64), (64, 512)):
        assert sum(low <= chunk <= high for chunk in chunks) > len(chunks) / 8, (low, high)
    assert len({s.rows for s in scenes}) > 8


def test_a_server_that_does_not_say_its_limits_is_refused() -> None:
    with pytest.raises(ServerError, match="rows, kv_tokens, context_tokens, vocabulary"):
        Limits.of({"chunk_tokens": 5})


def test_a_server_too_small_for_a_profile_is_refused() -> None:
    with pytest.raises(ServerError, match="too small to profile"):
        Limits.of(
            {"chunk_tokens": 8, "rows": 1, "kv_tokens": 16, "context_tokens": 80, "vocabulary": 9}
        )
