"""vLLM's scheduler in small: every figure here is worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.gpu_tables import Prompts
from eval.vllm_fcfs import Blocks, FcfsScheduler, Request, Settings, simulate

ONE_SECOND = Settings(blocks=1000, asynchronous=False)


def one_second(prompts: Prompts, rows: int, kv_tokens: int) -> float:
    return 1.0


def request(rid: int, *, at_s: float = 0.0, prompt: int = 10, output: int = 3) -> Request:
    return Request(rid=rid, arrival_s=at_s, prompt_tokens=prompt, output_tokens=output)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_one_request_gets_a_token_an_iteration(asynchronous: bool) -> None:
    alone = request(0)
    iterations = simulate([alone], one_second, Settings(blocks=9, asynchronous=asynchronous))
    assert (alone.first_s, alone.last_s, iterations) == (1.0, 3.0, 3)
    assert (alone.ttft_s, alone.tpot_s) == (1.0, 1.0)


@pytest.mark.parametrize(("asynchronous", "ttft_s"), [(False, 1.5), (True, 2.5)])
def test_an_arrival_during_an_iteration_waits_for_the_next_plan(
    asynchronous: bool, ttft_s: float
) -> None:
    """Asynchronously the next iteration was planned at 0 already; the one after starts at 2."""
    first, second = request(0, output=10), request(1, at_s=0.5)
    simulate([first, second], one_second, Settings(blocks=99, asynchronous=asynchronous))
    assert second.ttft_s == ttft_s


def test_a_prompt_longer_than_the_budget_is_cut() -> None:
    seen: list[tuple[int, int]] = []

    def note(prompts: Prompts, rows: int, kv_tokens: int) -> float:
        seen.extend(prompts)
        return 1.0

    simulate([request(0, prompt=3000, output=1)], note, ONE_SECOND)
    assert seen == [(2048, 0), (952, 2048)]


def test_decode_rows_come_before_prompts_and_count_their_own_token() -> None:
    batches: list[tuple[Prompts, int, int]] = []

    def note(prompts: Prompts, rows: int, kv_tokens: int) -> float:
        batches.append((prompts, rows, kv_tokens))
        return 1.0

    simulate([request(0, prompt=10, output=2), request(1, at_s=0.5, prompt=7, output=1)], note,
             Settings(blocks=99, budget_tokens=12, asynchronous=False))  # fmt: skip
    assert batches == [(((10, 0),), 0, 0), (((7, 0),), 1, 11)]


def test_the_newest_gives_way_and_computes_again_only_what_was_taken() -> None:
    """4 blocks of 4 tokens; both prompts fill 2. At their 9th token the older takes the last
    block of the newer, whose first 4 tokens are still there when it comes back."""
    prompts_seen: list[tuple[int, int]] = []

    def note(prompts: Prompts, rows: int, kv_tokens: int) -> float:
        prompts_seen.extend(prompts)
        return 1.0

    older, newer = request(0, prompt=7, output=3), request(1, prompt=7, output=3)
    simulate([older, newer], note, Settings(blocks=4, block_tokens=4, asynchronous=False))
    assert (older.preemptions, newer.preemptions) == (0, 1)
    assert prompts_seen[2:] == [(5, 4)]
    assert older.last_s == 3.0
    assert newer.last_s == 4.0


def test_a_prompt_is_not_begun_before_all_of_it_fits() -> None:
    """8 blocks; the first holds 5, so the second, which needs 4, waits although 3 are free."""
    first, second = request(0, prompt=19, output=1), request(1, prompt=15, output=1)
    scheduler = FcfsScheduler(Settings(blocks=8, block_tokens=4))
    scheduler.waiting.extend([first, second])
    iteration = scheduler.plan()
    assert iteration is not None
    assert iteration.prompts == ((19, 0),)
    assert list(scheduler.waiting) == [second]


def test_who_gives_way_with_its_last_token_in_flight_is_done_all_the_same() -> None:
    """3 blocks: the older's 5th token takes one of the newer, which ends in the same second."""
    older, newer = request(0, prompt=4, output=3), request(1, prompt=7, output=1)
    simulate([older, newer], one_second, Settings(blocks=3, block_tokens=4))
    assert (newer.preemptions, newer.last_s) == (1, 1.0)
    assert older.last_s == 3.0


def test_what_can_never_run_is_named() -> None:
    with pytest.raises(ValueError, match="1 requests can never run in 2 blocks of 16 tokens"):
        simulate([request(0, prompt=33)], one_second, Settings(blocks=2))


def test_a_request_of_one_token_has_no_time_per_token() -> None:
    alone = request(0, output=1)
    simulate([alone], one_second, ONE_SECOND)
    assert math.isnan(alone.tpot_s)


def test_a_taken_block_forgets_what_it_held() -> None:
    blocks, first, second = Blocks(2), request(0), request(1)
    blocks.take(first, 2)
    blocks.give_back(first)
    assert len(blocks.kept(first, 2)) == 2
    blocks.take(second, 1)
    assert len(blocks.kept(first, 2)) == 1


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=12),
    blocks=st.integers(16, 40),
    asynchronous=st.booleans(),
)
def test_everybody_is_answered_whole_and_every_block_comes_back(
    lengths: list[tuple[int, int]], blocks: int, asynchronous: bool
) -> None:
    requests = [
        request(rid, at_s=0.7 * rid, prompt=prompt, output=output)
        for rid, (prompt, output) in enumerate(lengths)
    ]
    settings = Settings(
        blocks=blocks, block_tokens=4, budget_tokens=16, max_rows=4, asynchronous=asynchronous
    )
    simulate(requests, one_second, settings)
    for served in requests:
        assert served.given == served.planned == served.output_tokens
        assert not served.blocks
        assert served.arrival_s < served.first_s <= served.last_s
