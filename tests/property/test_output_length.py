"""The survival table against Kaplan and Meier's formula, and its inverse against itself."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from echo_sglang.estimate.output_length import (
    PRIOR_MEDIAN_TOKENS,
    PRIOR_REQUESTS,
    UNIT_BINS,
    SurvivalTable,
)
from tests.examples import examples

ENDS = st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=60)


def prior_beyond(tokens: int) -> float:
    """Pseudo-requests of the prior that are longer than `tokens`."""
    return PRIOR_REQUESTS / (1.0 + tokens / PRIOR_MEDIAN_TOKENS)


@examples(150)
@given(ends=ENDS, half_life=st.sampled_from([1.0, 7.0, 1e9]))
def test_survival_is_the_product_over_tokens_of_one_minus_ended_over_at_risk(
    ends: list[tuple[int, bool]], half_life: float
) -> None:
    table = SurvivalTable(half_life=half_life)
    for length, cut_off in ends:
        table.observe(length, cut_off=cut_off)
    weights = [0.5 ** ((len(ends) - 1 - index) / half_life) for index in range(len(ends))]
    survival = 1.0
    for token in range(1, UNIT_BINS + 1):
        ended = prior_beyond(token - 1) - prior_beyond(token)
        at_risk = prior_beyond(token - 1)
        for (length, cut_off), weight in zip(ends, weights, strict=True):
            ended += weight * (length == token and not cut_off)
            at_risk += weight * (length >= token)
        survival *= 1.0 - ended / at_risk
        assert math.isclose(
            math.exp(float(table.log_survival(token))), survival, rel_tol=1e-6, abs_tol=1e-12
        )


@examples(200)
@given(
    ends=st.lists(st.tuples(st.integers(1, 5_000), st.booleans()), max_size=40),
    produced=st.integers(0, 6_000),
    quantile=st.floats(0.01, 0.99),
)
def test_what_remains_is_the_shortest_rest_that_reaches_the_quantile(
    ends: list[tuple[int, bool]], produced: int, quantile: float
) -> None:
    table = SurvivalTable()
    for length, cut_off in ends:
        table.observe(length, cut_off=cut_off)

    def ended_within(rest: int) -> float:
        change = float(table.log_survival(produced + rest)) - float(table.log_survival(produced))
        return -math.expm1(change)

    rest = table.remaining(produced, 10**9, quantile)
    beyond_the_table = produced + rest >= 1 << 20
    assert beyond_the_table or ended_within(rest) >= quantile - 1e-6
    assert rest == 1 or ended_within(rest - 1) < quantile + 1e-6


@examples(100)
@given(ends=ENDS)
def test_survival_falls_from_one_and_never_reaches_nothing(ends: list[tuple[int, bool]]) -> None:
    table = SurvivalTable()
    for length, cut_off in ends:
        table.observe(length, cut_off=cut_off)
    values = table.log_survival([0.0, 0.5, 1.0, 7.3, 40.0, 41.0, 5_000.0, 1e9])
    assert values[0] == 0.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))
    assert math.isfinite(values[-1])
