"""What fits into an iteration, and what of it the model knows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from echo_sglang.domain.batch import BatchShape
from echo_sglang.estimate.hull import PROFILE_REACH, Hull
from echo_sglang.policy.iteration import MAX_SECANTS, Iteration, largest, largest_within

from .builders import MODEL, snapshot

DECODE = BatchShape(decode_rows=2, decode_kv_tokens=400)


def iteration(mixed: bool = True, hull: Hull | None = None) -> Iteration:
    return Iteration(snapshot(mixed=mixed), replace(MODEL, hull=hull), DECODE)


@pytest.mark.parametrize("bound", [-3, 0, 1, 2, 63, 64, 65, 100, 400])
def test_the_largest_number_that_holds_is_found(bound: int) -> None:
    assert largest(100, lambda number: number <= bound) == min(max(bound, 0), 100)


@pytest.mark.parametrize("budget_s", [0.0, 0.009, 0.0301, 0.0501, 0.2, 5.0])
@pytest.mark.parametrize("bend", [1, 60, 199])
def test_guessing_along_the_secant_finds_what_halving_finds(budget_s: float, bend: int) -> None:
    asked: list[int] = []

    def seconds(tokens: int) -> float:
        asked.append(tokens)
        return 0.01 + 1e-4 * tokens + 1e-3 * max(tokens - bend, 0) + 1e-7 * tokens * tokens

    found = largest_within(4000, seconds, budget_s)
    assert len(asked) <= 2 + MAX_SECANTS + 12
    assert found == largest(4000, lambda tokens: seconds(tokens) <= budget_s)


def test_a_chunk_nearly_proportional_to_its_time_is_found_in_a_handful_of_guesses() -> None:
    asked: list[int] = []

    def seconds(tokens: int) -> float:
        asked.append(tokens)
        return 0.02 + 1e-4 * tokens + 1e-9 * tokens * tokens

    assert largest_within(8192, seconds, 0.0425) == 224
    assert len(asked) <= 7  # halving asks 14 times


def test_a_time_that_jumps_is_solved_too() -> None:
    assert largest_within(4000, lambda tokens: 0.01 if tokens < 777 else 9.0, 0.02) == 776
    assert largest_within(4000, lambda tokens: 0.01, 0.02) == 4000
    assert largest_within(0, lambda tokens: 0.01, 0.02) == 0


def test_nothing_is_the_largest_of_nothing() -> None:
    assert largest(0, lambda number: True) == 0
    assert largest(-5, lambda number: True) == 0


def test_a_mixed_chunk_shares_its_iteration_with_the_decode_rows() -> None:
    # 10 ms + 2 rows * 5 ms leave 30 of 50 ms, at 1 ms a token.
    assert iteration().largest_chunk([(20, 0), (90, 0)], 0.0501) == 30


def test_without_mixing_the_decode_step_that_follows_counts_too() -> None:
    # The prefill's own 10 ms, then 20 ms of decode.
    assert iteration(mixed=False).largest_chunk([(90, 0)], 0.0501) == 20


def test_asking_again_gives_the_same_answer() -> None:
    plan = iteration()
    answers = {plan.largest_chunk([(90, 0)], budget_s) for budget_s in (0.05, 0.05, 0.06)}
    assert len(answers) == 2


def test_a_chunk_is_known_as_far_as_the_model_was_shown() -> None:
    seen = (100.0, 1e6, 1e3, 2.0, 400.0, 200.0, 1e3)
    hull = Hull(reach=PROFILE_REACH, extend=seen, decode=seen, mixed=seen)
    # 1.05 times the 100 tokens seen.
    assert iteration(hull=hull).known_chunk([(80, 0), (90, 0)], 170) == 105
    assert iteration(hull=hull).known_chunk([(80, 0), (90, 0)], 60) == 60


def test_beside_rows_that_the_model_was_never_shown_no_chunk_is_known() -> None:
    seen = (100.0, 1e6, 1e3, 1.0, 200.0, 200.0, 1e3)
    hull = Hull(reach=PROFILE_REACH, extend=seen, decode=seen, mixed=seen)
    assert iteration(hull=hull).known_chunk([(80, 0)], 80) == 0
    # Not in one iteration with them, it is.
    assert iteration(mixed=False, hull=hull).known_chunk([(80, 0)], 80) == 80


def test_the_prefix_of_a_chunk_is_part_of_its_shape() -> None:
    model = replace(MODEL, weights_s=(0.0,) * 11 + (1e-3, 0.0))  # 1 ms a prefix token
    plan = Iteration(snapshot(), model, BatchShape())
    assert math.isclose(plan.seconds([(10, 70), (10, 30)], 15), 0.1)
    assert math.isclose(plan.seconds([(10, 70), (10, 30)], 10), 0.07)
