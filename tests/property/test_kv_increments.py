"""Streamed increments and quantiles against brute force over the whole history."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from echo_sglang.estimate.increments import HorizonIncrements, SlidingQuantile
from echo_sglang.estimate.kv_demand import MAX_SAMPLES, WindowQuantileReserve, enough_samples
from tests.examples import examples

STEPS = st.lists(
    st.tuples(
        st.one_of(st.floats(0.0, 0.3), st.floats(-5.0, 20.0), st.sampled_from([0.0, 0.25, 0.5])),
        st.integers(-3, 1_000),
    ),
    min_size=1,
    max_size=60,
)


def brute_force(history: list[tuple[float, int]], horizon_s: float, spacing_s: float) -> list[int]:
    """All increments known after `history` (time in which someone looked, tokens)."""
    known: list[int] = []
    origin = 0
    while origin * spacing_s + horizon_s < history[-1][0]:
        start_s = origin * spacing_s
        at_start = [tokens for at_s, tokens in history if at_s <= start_s][-1]
        later = [tokens for at_s, tokens in history if start_s < at_s <= start_s + horizon_s]
        known.append(max([0, *(tokens - at_start for tokens in later)]))
        origin += 1
    return known


def seconds_looked(
    steps: list[tuple[float, int]], horizon_s: float, spacing_s: float
) -> list[tuple[float, int]]:
    """The same steps, (seconds since the last, tokens), on the clock of `increments`."""
    looked: list[tuple[float, int]] = []
    clock_s = last_s = elapsed_s = 0.0
    for index, (step_s, tokens) in enumerate(steps):
        clock_s += step_s
        if index:
            elapsed_s += min(max(clock_s - last_s, 0.0), horizon_s + spacing_s)
        last_s = clock_s
        looked.append((elapsed_s, max(tokens, 0)))
    return looked


@examples(300)
@given(
    steps=STEPS,
    horizon_s=st.sampled_from([0.25, 1.0, 3.3]),
    spacing_s=st.sampled_from([0.1, 0.5, 2.0]),
)
def test_streamed_increments_are_those_of_the_definition(
    steps: list[tuple[float, int]], horizon_s: float, spacing_s: float
) -> None:
    increments = HorizonIncrements(horizon_s=horizon_s, spacing_s=spacing_s)
    looked = seconds_looked(steps, horizon_s, spacing_s)
    found: list[int] = []
    clock_s = 0.0
    for index, (step_s, tokens) in enumerate(steps):
        clock_s += step_s
        found += increments.observe(clock_s, tokens)
        assert found == brute_force(looked[: index + 1], horizon_s, spacing_s)


@examples(200)
@given(
    values=st.lists(st.integers(0, 50), min_size=1, max_size=80),
    size=st.integers(1, 20),
    share=st.floats(0.001, 0.999),
)
def test_a_sliding_quantile_is_that_of_the_last_values(
    values: list[int], size: int, share: float
) -> None:
    seen = SlidingQuantile(size)
    for index, value in enumerate(values):
        seen.add(value)
        last = sorted(values[max(0, index + 1 - size) : index + 1])
        at_most = math.ceil(share * (len(last) + 1))
        expected = last[-1] if at_most >= len(last) else last[max(at_most, 1) - 1]
        assert len(seen) == len(last)
        assert seen.quantile(share) == expected


@examples(100)
@given(steps=STEPS, quantile=st.floats(0.05, 0.95))
def test_the_reserve_is_the_quantile_of_the_window_within_its_limits(
    steps: list[tuple[float, int]], quantile: float
) -> None:
    horizon_s, window_s = 2.0, 100.0
    spacing_s = window_s / MAX_SAMPLES
    reserve = WindowQuantileReserve(
        horizon_s=horizon_s,
        quantile=quantile,
        window_s=window_s,
        floor_tokens=20,
        ceiling_tokens=700,
    )
    clock_s = 0.0
    for step_s, tokens in steps:
        clock_s += step_s
        reserve.observe(clock_s, tokens)
    known = brute_force(seconds_looked(steps, horizon_s, spacing_s), horizon_s, spacing_s)
    window = sorted(known[-MAX_SAMPLES:])
    expected = 700
    if len(window) >= enough_samples(horizon_s, spacing_s, 1.0 - quantile):
        rank = min(math.ceil(quantile * (len(window) + 1)), len(window))
        expected = min(max(window[rank - 1], 20), 700)
    assert reserve.reserve_tokens(clock_s) == expected
