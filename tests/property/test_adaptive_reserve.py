"""The adaptive reserve's numbers against plain sums and sorts."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from echo_sglang.estimate.adaptive_reserve import (
    FEWEST_NEAR,
    NEAREST_SHARE,
    AdaptiveReserve,
    History,
    expected_change,
)
from echo_sglang.estimate.kv_demand import OnlineRow, RunningOnline
from echo_sglang.estimate.output_length import SurvivalTable
from tests.examples import examples

ROWS = st.lists(
    st.builds(OnlineRow, st.integers(1, 9_000), st.integers(0, 900), st.integers(0, 1_500)),
    max_size=20,
)


@examples(150)
@given(
    rows=ROWS,
    ends=st.lists(st.integers(1, 1_000), max_size=30),
    horizon_s=st.sampled_from([0.3, 1.0, 5.0]),
)
def test_the_expected_change_is_the_sum_over_rows(
    rows: list[OnlineRow], ends: list[int], horizon_s: float
) -> None:
    lengths = SurvivalTable()
    for length in ends:
        lengths.observe(length)

    def survival(tokens: int) -> float:
        return math.exp(float(lengths.log_survival(tokens)))

    steps = math.floor(horizon_s / 0.03)
    expected = 0.0
    for row in rows:
        after = row.produced_tokens + steps
        runs_on = survival(after) / survival(row.produced_tokens)
        if after >= row.max_new_tokens:
            runs_on = 0.0
        expected += runs_on * (row.kv_tokens + steps) - row.kv_tokens
    found = expected_change(RunningOnline(0.03, rows), lengths, horizon_s)
    assert math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-6)


@examples(150)
@given(
    pairs=st.lists(
        st.tuples(st.integers(-500, 500), st.integers(0, 5_000)),
        min_size=1, max_size=200, unique_by=lambda pair: pair[0],
    ),
    now=st.integers(-600, 600),
    share=st.floats(0.01, 0.999),
)  # fmt: skip
def test_the_quantile_is_of_the_nearest_increments_moved_along_the_line(
    pairs: list[tuple[int, int]], now: int, share: float
) -> None:
    history = History()
    for known, increment in pairs:
        history.add(float(known), increment)
    n = len(pairs)
    mean = sum(known for known, _ in pairs) / n
    spread = sum((known - mean) ** 2 for known, _ in pairs)
    product = sum((known - mean) * increment for known, increment in pairs)
    slope = product / spread if spread else 0.0
    near = max(math.ceil(NEAREST_SHARE * n), min(n, FEWEST_NEAR))
    by_distance = sorted(pairs, key=lambda pair: abs(pair[0] - now))
    if near < n and abs(by_distance[near - 1][0] - now) == abs(by_distance[near][0] - now):
        return  # two are equally far: either may be kept
    moved = sorted(increment + slope * (now - known) for known, increment in by_distance[:near])
    rank = max(min(math.ceil(share * (near + 1)), near), 1)
    found = history.quantile_near(float(now), share)
    assert math.isclose(found, moved[rank - 1], rel_tol=1e-6, abs_tol=1e-6)


@examples(60)
@given(
    steps=st.lists(
        st.tuples(
            st.one_of(st.floats(0.0, 2.0), st.floats(allow_nan=True, allow_infinity=True)),
            st.integers(-5, 10**12),
            ROWS,
            st.one_of(st.just(0.02), st.floats(allow_nan=True, allow_infinity=True)),
        ),
        max_size=120,
    )
)
def test_nothing_that_is_told_breaks_it(
    steps: list[tuple[float, int, list[OnlineRow], float]],
) -> None:
    reserve = AdaptiveReserve(
        lengths=SurvivalTable(),
        horizon_s=0.5,
        window_s=30.0,
        floor_tokens=7,
        ceiling_tokens=9_999,
        violation_rate=0.5,
    )
    clock_s = 0.0
    for step_s, tokens, rows, pace_s in steps:
        clock_s += step_s
        running = RunningOnline(pace_s, rows)
        reserve.observe(clock_s, tokens, lambda told=running: told)
        assert 7 <= reserve.reserve_tokens(clock_s) <= 9_999
        if not math.isfinite(clock_s):
            clock_s = 0.0
