"""What holds for every step-time model: more prefill never takes less time, and inverses fit."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from echo_sglang.domain.batch import BatchShape, Regime
from echo_sglang.estimate.curves import Curve, CurveSum
from echo_sglang.estimate.fitted import FittedTimes, RegimeFit
from echo_sglang.estimate.hull import PROFILE_REACH, Hull
from echo_sglang.estimate.lattice import fit_lattice
from echo_sglang.estimate.step_time import StepTimeModel
from echo_sglang.policy.iteration import Iteration
from tests.examples import examples
from tests.unit.estimate.machines import machine_training

ROUNDING = 1.0 + 1e-9
slopes = st.sampled_from([0.0, 0.0, 1e-8, 1e-6, 1e-4])


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    """Any rising curve, flat parts and steep steps included."""
    knots = sorted(draw(st.sets(st.integers(1, 40_000), max_size=5)))
    offset, start, slope = 0.0, 0.0, draw(slopes)
    offsets, steepness = [offset], [slope]
    for knot in knots:
        at_knot = offset + slope * knot
        slope = draw(slopes)
        start = float(knot)
        offset = at_knot - slope * start
        offsets.append(offset)
        steepness.append(slope)
    return Curve(tuple(map(float, knots)), tuple(offsets), tuple(steepness))


@st.composite
def fits(draw: st.DrawFn) -> RegimeFit:
    """Any curves, corrected by a lattice fitted to arbitrary ratios around their times."""
    total = CurveSum(draw(st.sampled_from([1e-4, 5e-3])), tuple(draw(curves()) for _ in range(5)))
    rng = np.random.default_rng(draw(st.integers(0, 1_000)))
    count = draw(st.integers(0, 24))
    rows = rng.integers(0, 12, count).astype(float)
    fitted_s = np.exp(rng.uniform(math.log(1e-4), math.log(2.0), count))
    ratios = rng.normal(0.0, 0.8, count)
    return RegimeFit(total, fit_lattice(rows, 300.0 * rows, fitted_s, ratios))


@st.composite
def models(draw: st.DrawFn) -> StepTimeModel:
    if draw(st.integers(0, 3)) == 0:
        return machine_training().model
    size = st.floats(1.0, 3_000.0)
    seen = (draw(size), 1e6, 1e3, 8.0, 4e3, 1e3, draw(st.floats(100.0, 1e3)))
    weights = tuple(draw(st.sampled_from([0.0, 1e-7, 1e-4])) for _ in range(13))
    return StepTimeModel(
        weights_s=draw(st.sampled_from([(), weights])),
        fitted=FittedTimes(extend=draw(fits()), decode=draw(fits()), mixed=draw(fits())),
        fitted_weight=draw(st.sampled_from([0.5, 1.0, 3.0])),
        hull=Hull(reach=PROFILE_REACH, extend=seen, decode=seen, mixed=seen),
        largest_extend_tokens=4_096,
    )


work = st.lists(st.tuples(st.integers(1, 1_500), st.integers(0, 4_000)), min_size=1, max_size=4)


@st.composite
def iterations(draw: st.DrawFn) -> Iteration:
    rows = draw(st.integers(0, 12))
    decode = BatchShape(decode_rows=rows, decode_kv_tokens=rows * draw(st.integers(1, 900)))
    snapshot: Any = SimpleNamespace(
        mixed=draw(st.booleans()), chunk_cap_tokens=draw(st.integers(1, 2_048))
    )
    return Iteration(snapshot, draw(models()), decode)


@examples(60)
@given(iteration=iterations(), work=work, parts=st.lists(st.integers(1, 6_000), max_size=12))
def test_a_larger_chunk_never_takes_less_time(
    iteration: Iteration, work: list[tuple[int, int]], parts: list[int]
) -> None:
    seconds = [iteration.seconds(work, tokens) for tokens in sorted(parts)]
    for shorter, longer in pairwise(seconds):
        assert shorter <= longer * ROUNDING


@examples(50)
@given(model=models(), rows=st.integers(0, 12), kv=st.integers(1, 900), start=st.integers(1, 3_000))
def test_neighbouring_chunks_are_in_order_too(
    model: StepTimeModel, rows: int, kv: int, start: int
) -> None:
    base = BatchShape(decode_rows=rows, decode_kv_tokens=rows * kv)
    seconds = [model.upper(base.with_chunk(start + i, 100)) for i in range(40)]
    for shorter, longer in pairwise(seconds):
        assert shorter <= longer * ROUNDING


@examples(60)
@given(iteration=iterations(), work=work, share=st.floats(0.0, 1.2))
def test_the_largest_chunk_fits_its_budget_and_one_more_token_does_not(
    iteration: Iteration, work: list[tuple[int, int]], share: float
) -> None:
    cap = iteration.chunk_cap(work)
    budget_s = share * iteration.seconds(work, cap)
    tokens = iteration.largest_chunk(work, budget_s)
    assert 0 <= tokens <= cap
    if tokens:
        assert iteration.seconds(work, tokens) <= budget_s
    if tokens < cap:
        assert iteration.seconds(work, tokens + 1) * ROUNDING >= budget_s


@examples(60)
@given(iteration=iterations(), work=work, tokens=st.integers(0, 4_000))
def test_the_known_chunk_is_no_guess_and_one_more_token_is(
    iteration: Iteration, work: list[tuple[int, int]], tokens: int
) -> None:
    tokens = min(tokens, sum(extend for extend, _ in work))
    known = iteration.known_chunk(work, tokens)

    def guessed(part: int) -> bool:
        base = iteration.decode if iteration.snapshot.mixed else BatchShape()
        left = part
        for extend, prefix in work:
            if left <= 0:
                break
            base = base.with_chunk(min(extend, left), prefix)
            left -= extend
        return iteration.model.extrapolates(base)

    assert 0 <= known <= tokens
    assert known == 0 or not guessed(known)
    assert known == tokens or guessed(known + 1)


@examples(50)
@given(model=models(), rows=st.integers(0, 20), chunk=st.integers(0, 5_000))
def test_the_bound_is_never_below_the_prediction(
    model: StepTimeModel, rows: int, chunk: int
) -> None:
    shape = BatchShape(decode_rows=rows, decode_kv_tokens=300 * rows)
    if chunk:
        shape = shape.with_chunk(chunk, 50)
    assert 0.0 < model.predict(shape) <= model.upper(shape) < math.inf
    assert all(model.log_factor(regime) >= 0.0 for regime in Regime)


def test_growing_into_a_prompt_with_a_shorter_prefix_never_comes_back_into_the_hull() -> None:
    # 1,051 prefix tokens were never seen; a second prompt without prefix halves their mean.
    hull = Hull(reach=1.0).grown(BatchShape().with_chunk(64, 1_000))
    long = BatchShape().with_chunk(1, 1_051)
    assert 1.0 < hull.excess(long) <= hull.excess(long.with_chunk(1, 0))
