"""Output lengths are learned per class, cut-off requests are no ends, old habits fade."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from echo_sglang.domain.tag import ServiceClass
from echo_sglang.errors import ConfigError
from echo_sglang.estimate.output_length import (
    EDGES,
    LONGEST_TOKENS,
    OutputLengths,
    SurvivalTable,
)


def learned(*lengths: int, half_life: float = 1_000.0) -> SurvivalTable:
    table = SurvivalTable(half_life=half_life)
    for length in lengths:
        table.observe(length)
    return table


def test_bins_are_one_token_wide_up_to_16_then_an_eighth_of_an_octave() -> None:
    assert EDGES[:17] == tuple(range(17))
    assert EDGES[17:25] == (17, 19, 21, 23, 25, 27, 29, 32)
    assert EDGES[-1] == LONGEST_TOKENS
    assert all(below < above for below, above in itertools.pairwise(EDGES))


def test_before_data_the_median_is_that_of_the_prior_and_the_past_promises_more() -> None:
    table = SurvivalTable()
    assert table.remaining(0, 10**6, 0.5) == pytest.approx(200, rel=0.03)
    left = [table.remaining(produced, 10**6, 0.5) for produced in (0, 200, 1_000)]
    assert left == pytest.approx([200, 400, 1_200], rel=0.03)  # log-logistic: median + produced


def test_known_lengths_are_foretold_to_a_bin() -> None:
    table = learned(*[50] * 500)
    assert 45 < table.remaining(0, 4_096, 0.5) <= 54
    assert 20 < table.remaining(25, 4_096, 0.9) <= 54 - 25
    assert table.remaining(3, 4_096, 0.001) == pytest.approx(42, abs=5)


def test_quantiles_of_short_outputs_are_exact() -> None:
    table = learned(*([2] * 300 + [4] * 400 + [9] * 300), half_life=1e9)
    assert [table.remaining(0, 99, q) for q in (0.25, 0.5, 0.65, 0.75, 0.95)] == [2, 4, 4, 9, 9]
    assert table.remaining(2, 99, 0.5) == 2  # of those that passed 2, 4 in 7 end at 4
    assert table.remaining(4, 99, 0.5) == 5


def test_geometric_lengths_have_no_memory() -> None:
    rng = random.Random(5)
    table = learned(*(1 + int(rng.expovariate(1 / 80)) for _ in range(20_000)), half_life=1e9)
    for produced in (0, 40, 120):
        assert table.remaining(produced, 10_000, 0.5) == pytest.approx(80 * math.log(2), rel=0.08)


def test_what_may_be_produced_at_most_bounds_what_remains() -> None:
    table = learned(*[1_000] * 200)
    assert table.remaining(100, 130, 0.99) == 30
    assert table.remaining(130, 130, 0.99) == 0
    assert table.remaining(200, 130, 0.99) == 0
    assert table.remaining(2_000_000, 3_000_000, 0.5) >= 1


def test_a_request_cut_off_is_no_sign_that_outputs_end_there() -> None:
    ended, cut = SurvivalTable(), SurvivalTable()
    for _ in range(400):
        ended.observe(100)
        cut.observe(100, cut_off=True)
    assert ended.remaining(90, 10_000, 0.5) <= 20
    assert cut.remaining(0, 100, 0.9) == 100
    assert cut.remaining(99, 10_000, 0.5) > 150


def test_a_new_habit_replaces_the_old_one() -> None:
    table = learned(*[20] * 5_000, half_life=100)
    for _ in range(500):
        table.observe(700)
    assert table.remaining(0, 4_096, 0.5) > 600


def test_weights_stay_finite_however_long_it_runs() -> None:
    table = learned(*[3] * 5_000, half_life=1)
    assert table.num_observed == 5_000
    assert table.remaining(0, 100, 0.4) == 3


def test_impossible_lengths_teach_nothing_and_endless_ones_are_cut_off() -> None:
    table = learned(0, -4)
    assert table.num_observed == 0
    table.observe(LONGEST_TOKENS * 2)
    assert table.num_observed == 1
    assert table.remaining(0, 4_096, 0.3) > SurvivalTable().remaining(0, 4_096, 0.3)


def test_classes_are_learned_apart() -> None:
    lengths = OutputLengths(half_life=500)
    for _ in range(300):
        lengths.observe(ServiceClass.ONLINE, 10)
        lengths.observe(ServiceClass.OFFLINE, 900, cut_off=True)
    assert lengths.remaining(ServiceClass.ONLINE, 0, 4_096, 0.5) == 10
    assert lengths.remaining(ServiceClass.OFFLINE, 0, 900, 0.5) == 900
    assert lengths.table(ServiceClass.ONLINE).num_observed == 300


@pytest.mark.parametrize("half_life", [0.0, -1.0, math.nan, math.inf])
def test_a_half_life_that_is_not_allowed_is_named(half_life: float) -> None:
    with pytest.raises(ConfigError, match=f"half_life {half_life}: allowed is a finite number"):
        SurvivalTable(half_life=half_life)


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.5, math.nan])
def test_a_quantile_that_is_not_allowed_is_named(quantile: float) -> None:
    with pytest.raises(ConfigError, match=f"quantile {quantile}: allowed is above 0"):
        SurvivalTable().remaining(0, 10, quantile)
