"""decide(): who runs, how much, who gives way. MODEL is 10 ms + 1 ms a token + 5 ms a row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from echo_sglang.domain.plan import ChunkAction, Reason
from echo_sglang.domain.snapshot import ChunkInProgress, MemoryView, OfflineRows
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.estimate.step_time import StepTimeModel
from echo_sglang.policy.coscheduler import decide

from .builders import MODEL, SETTINGS, candidate, memory, online, row, snapshot, waiting


def test_an_empty_server_idles() -> None:
    plan = decide(snapshot(), MODEL, SETTINGS)
    assert plan.reason is Reason.IDLE
    assert not plan.runs_prefill


def test_an_offline_prompt_alone_gets_what_an_arrival_could_absorb() -> None:
    # guard: a quarter of 2 s; 10 ms and 490 tokens
    plan = decide(snapshot(candidates=(candidate("a", tokens=900),)), MODEL, SETTINGS)
    assert plan.reason is Reason.OFFLINE_PREFILL
    assert plan.chunk_tokens == plan.offline_tokens == 490
    assert plan.offline_order == ("a",)


def test_the_offline_chunk_ends_before_the_next_online_token_is_due() -> None:
    # 200 ms left; 10 ms + 2 rows * 5 ms leave 180 tokens of 1 ms
    plan = decide(
        snapshot(online=online(2, due_in_s=0.2), candidates=(candidate("a", tokens=900),)),
        MODEL,
        SETTINGS,
    )
    assert plan.chunk_tokens == 180
    assert plan.predicted_s == pytest.approx(0.2, abs=1e-5)


def test_without_mixed_chunks_the_decode_step_that_follows_counts_too() -> None:
    # 10 ms + c * 1 ms for the prefill, then 10 ms + 2 * 5 ms to decode: c = 170
    plan = decide(
        snapshot(
            mixed=False, online=online(2, due_in_s=0.2), candidates=(candidate("a", tokens=900),)
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.chunk_tokens == 170


def test_offline_work_waits_when_no_useful_chunk_fits() -> None:
    # 30 ms left; 10 + 10 ms are gone, 10 tokens are fewer than min_chunk_tokens = 16
    plan = decide(
        snapshot(online=online(2, due_in_s=0.03), candidates=(candidate("a", tokens=900),)),
        MODEL,
        SETTINGS,
    )
    assert plan.reason is Reason.NO_SLACK
    assert not plan.runs_prefill


def test_a_late_online_row_gets_no_offline_chunk_beside_it() -> None:
    plan = decide(
        snapshot(online=online(1, due_in_s=-0.5), candidates=(candidate("a", tokens=900),)),
        MODEL,
        SETTINGS,
    )
    assert plan.reason is Reason.NO_SLACK


def test_online_prompts_go_in_deadline_order_and_the_hopeless_last() -> None:
    # "late" needs 310 ms and has 100 ms: it goes after those that can make it
    requests = (
        waiting("late", tokens=300, due_in_s=0.1),
        waiting("far", tokens=50, due_in_s=1.5),
        waiting("near", tokens=50, due_in_s=0.9),
    )
    plan = decide(snapshot(waiting_online=requests), MODEL, SETTINGS)
    assert plan.online_order == ("near", "far", "late")


def test_offline_fills_what_online_prompts_leave_of_the_chunk() -> None:
    # 250 ms until the next token: 10 + 5 + 100 online + 135 offline
    plan = decide(
        snapshot(
            online=online(1, due_in_s=0.25),
            waiting_online=(waiting("w", tokens=100),),
            candidates=(candidate("a", tokens=900),),
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.reason is Reason.ONLINE_WITH_OFFLINE
    assert (plan.chunk_tokens, plan.offline_tokens) == (235, 135)


def test_online_prompts_run_even_without_slack() -> None:
    plan = decide(
        snapshot(online=online(1, due_in_s=-1.0), waiting_online=(waiting("w", tokens=100),)),
        MODEL,
        SETTINGS,
    )
    assert plan.reason is Reason.ONLINE_PREFILL
    assert plan.chunk_tokens == 100


def test_running_rows_wait_one_longer_gap_if_the_burst_would_miss_its_ttft() -> None:
    # 5 x 200 tokens at 190 a step of 0.3 s, the rest of which 20 rows take, need 6 steps = 1.8 s
    running = online(20, due_in_s=0.3)
    burst = tuple(waiting(f"w{i}", tokens=200, due_in_s=1.7) for i in range(5))
    relaxed = decide(snapshot(online=running, waiting_online=burst), MODEL, SETTINGS)
    assert relaxed.chunk_tokens == 512  # up to the gap of 0.9 s, capped by the server's chunk
    patient = tuple(waiting(f"w{i}", tokens=200, due_in_s=1.9) for i in range(5))
    kept = decide(snapshot(online=running, waiting_online=patient), MODEL, SETTINGS)
    assert kept.chunk_tokens == 190


def test_no_row_is_late_for_a_backlog_that_a_longer_iteration_hardly_ends_sooner() -> None:
    # Beside one row a prompt token takes 1.05 ms in a step of 0.3 s, and 1.03 ms in one of 0.53 s.
    burst = tuple(waiting(f"w{i}", tokens=200, due_in_s=0.9) for i in range(5))
    plan = decide(snapshot(online=online(1, due_in_s=0.3), waiting_online=burst), MODEL, SETTINGS)
    assert plan.chunk_tokens == 285


def test_offline_rows_give_way_when_online_lacks_memory() -> None:
    # w needs 1,000 + 24 + 1 + 1; 500 are there; each row gives back 150 private + 12 to come
    plan = decide(
        snapshot(
            memory=memory(available=500),
            waiting_online=(waiting("w", tokens=1_000),),
            offline_rows=tuple(row(f"r{i}") for i in range(6)),
        ),
        MODEL,
        SETTINGS,
    )
    assert len(plan.release) == 4  # 4 * 162 = 648 >= 526 > 3 * 162
    assert plan.offline_order == ()


def test_offline_rows_give_way_when_online_lacks_a_slot() -> None:
    plan = decide(
        snapshot(
            free_slots=0,
            waiting_online=(waiting("w", tokens=10), waiting("v", tokens=10)),
            offline_rows=tuple(row(f"r{i}") for i in range(6)),
        ),
        MODEL,
        SETTINGS,
    )
    assert len(plan.release) == 2


def test_the_fewest_youngest_offline_rows_give_way_when_time_is_short() -> None:
    # 10 ms + 5 ms a row; 60 ms left allow 10 rows, 13 run: 3 must go
    rows = tuple(row(f"r{i}", output=20 - i) for i in range(12))
    plan = decide(snapshot(online=online(1, due_in_s=0.06), offline_rows=rows), MODEL, SETTINGS)
    assert sorted(plan.release) == ["r10", "r11", "r9"]


def test_a_row_late_for_the_moment_catches_up_without_anybody_giving_way() -> None:
    # 13 rows decode in 75 ms, more than the 60 ms left, less than 0.85 of a TPOT of 100 ms
    rows = tuple(row(f"r{i}") for i in range(12))
    late = replace(online(1, due_in_s=0.06), tightest_tpot_s=0.1)
    assert decide(snapshot(online=late, offline_rows=rows), MODEL, SETTINGS).release == ()
    hurried = replace(late, tightest_tpot_s=0.05)
    assert decide(snapshot(online=hurried, offline_rows=rows), MODEL, SETTINGS).release


@pytest.mark.parametrize(("late_s", "gone"), [(0.0, 0), (0.2, 0), (0.8, 5), (1.2, 10), (9.0, 12)])
def test_the_later_a_row_is_the_fewer_offline_rows_decode_beside_it(
    late_s: float, gone: int
) -> None:
    # 13 rows take 75 ms. To catch up with 0.8 s in 16 tokens leaves 50 ms for each, which is 8
    # rows; 1.2 s leaves 25 ms, 3 rows; 9 s cannot be caught up: as little as makes sense, 1 row.
    rows = tuple(row(f"r{i}") for i in range(12))
    late = replace(online(1, due_in_s=-late_s), tightest_tpot_s=0.1)
    plan = decide(snapshot(online=late, offline_rows=rows), MODEL, SETTINGS)
    assert len(plan.release) == gone


def test_no_gap_between_two_tokens_gets_too_long_while_a_row_catches_up() -> None:
    rows = tuple(row(f"r{i}") for i in range(12))
    late = replace(online(1, due_in_s=0.01), tightest_tpot_s=0.1, earliest_gap_s=10.06)
    plan = decide(snapshot(online=late, offline_rows=rows), MODEL, SETTINGS)
    assert len(plan.release) == 3


def test_rows_that_cannot_be_resumed_are_never_released() -> None:
    rows = tuple(row(f"r{i}", releasable=False) for i in range(6))
    plan = decide(
        snapshot(free_slots=0, waiting_online=(waiting("w", tokens=10),), offline_rows=rows),
        MODEL,
        SETTINGS,
    )
    assert plan.release == ()


def test_offline_leaves_the_burst_reserve_alone() -> None:
    # room 1,500 - 1,000 reserve = 500; one request needs 300 + 16 + 1, two do not fit
    several = tuple(candidate(f"c{i}", tokens=300) for i in range(3))
    plan = decide(
        snapshot(
            memory=memory(available=1_500),
            online=online(1, due_in_s=5.0),
            candidates=several,
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.offline_order == ("c0",)
    assert plan.reserve_tokens == 1_000


def test_offline_rows_that_grew_into_the_reserve_give_way_before_anybody_needs_it() -> None:
    # 700 available, 1,000 reserved: 300 lack, a row of 400 KV tokens holds 200 of them alone
    rows = tuple(row(f"r{i}", kv=400) for i in range(4))
    plan = decide(
        snapshot(memory=memory(available=700), online=online(1, due_in_s=5.0), offline_rows=rows),
        MODEL,
        SETTINGS,
    )
    assert len(plan.release) == 2


def test_the_last_offline_row_may_use_the_reserve_while_nobody_asks_for_it() -> None:
    rows = (row("r", kv=9_000),)
    plan = decide(snapshot(memory=memory(available=500), offline_rows=rows), MODEL, SETTINGS)
    assert plan.release == ()


def test_idle_online_kv_worth_more_than_offline_work_is_left_alone() -> None:
    # 3,000 available, of which 1,900 are protected and 1,000 reserved: 100 are left for 317
    view = replace(memory(available=3_000), protected_tokens=1_900)
    plan = decide(
        snapshot(
            memory=view, online=online(1, due_in_s=5.0), candidates=(candidate("c", tokens=300),)
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.offline_order == ()
    assert plan.reason is Reason.NO_MEMORY


def test_a_prompt_larger_than_the_pool_less_reserve_still_runs_alone() -> None:
    plan = decide(snapshot(candidates=(candidate("a", tokens=9_500),)), MODEL, SETTINGS)
    assert plan.offline_order == ("a",)
    assert plan.reserve_tokens == 0


def test_a_released_row_stays_away_for_some_iterations() -> None:
    fresh = candidate("a", tokens=9, parked=3)
    assert decide(snapshot(candidates=(fresh,)), MODEL, SETTINGS).offline_order == ()
    rested = fresh._replace(steps_parked=4)
    assert decide(snapshot(candidates=(rested,)), MODEL, SETTINGS).offline_order == ("a",)


def chunk_of(service_class: ServiceClass, remaining: int) -> ChunkInProgress:
    return ChunkInProgress(
        rid="half",
        service_class=service_class,
        remaining_tokens=remaining,
        prefix_tokens=100,
        deadline_s=11.0 if service_class is ServiceClass.ONLINE else None,
    )


def test_an_offline_chunk_is_parked_while_a_short_online_prompt_passes() -> None:
    plan = decide(
        snapshot(
            chunk=chunk_of(ServiceClass.OFFLINE, 400), waiting_online=(waiting("w", tokens=100),)
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.chunk_action is ChunkAction.PARK
    assert plan.chunk_tokens == 100


def test_an_offline_chunk_is_released_for_an_online_prompt_that_must_be_cut_itself() -> None:
    plan = decide(
        snapshot(
            chunk=chunk_of(ServiceClass.OFFLINE, 400), waiting_online=(waiting("w", tokens=900),)
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.chunk_action is ChunkAction.RELEASE


def test_an_offline_chunk_gives_its_kv_to_an_online_prompt_that_lacks_it() -> None:
    # in time, the prompt would fit beside a parked chunk; but 60 + 24 + 1 + 1 > 50 tokens
    plan = decide(
        snapshot(
            memory=memory(available=50),
            chunk=chunk_of(ServiceClass.OFFLINE, 100),
            waiting_online=(waiting("w", tokens=60),),
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.chunk_action is ChunkAction.RELEASE


def test_an_offline_chunk_gives_its_slot_to_an_online_prompt_that_lacks_one() -> None:
    plan = decide(
        snapshot(
            free_slots=0,
            chunk=chunk_of(ServiceClass.OFFLINE, 100),
            waiting_online=(waiting("w", tokens=60),),
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.chunk_action is ChunkAction.RELEASE


def test_a_chunk_that_cannot_be_released_is_finished_rather_than_waited_for() -> None:
    stuck = replace(chunk_of(ServiceClass.OFFLINE, 100), releasable=False)
    plan = decide(
        snapshot(free_slots=0, chunk=stuck, waiting_online=(waiting("w", tokens=60),)),
        MODEL,
        SETTINGS,
    )
    assert plan.chunk_action is ChunkAction.CONTINUE
    assert (plan.chunk_tokens, plan.offline_tokens) == (160, 100)


def test_an_online_chunk_goes_on_before_other_online_prompts() -> None:
    plan = decide(
        snapshot(
            chunk=chunk_of(ServiceClass.ONLINE, 50), waiting_online=(waiting("w", tokens=100),)
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.chunk_action is ChunkAction.CONTINUE
    assert plan.chunk_tokens == 150


def test_an_untrained_model_keeps_offline_work_away_from_online_rows() -> None:
    plan = decide(
        snapshot(online=online(1, due_in_s=5.0), candidates=(candidate("a", tokens=90),)),
        StepTimeModel(),
        SETTINGS,
    )
    assert plan.reason is Reason.SAFE_MODE
    assert not plan.runs_prefill


def test_an_untrained_model_learns_on_small_chunks_when_nobody_is_online() -> None:
    plan = decide(snapshot(candidates=(candidate("a", tokens=900),)), StepTimeModel(), SETTINGS)
    assert plan.reason is Reason.SAFE_MODE
    assert plan.chunk_tokens == 32
    grown = decide(
        snapshot(candidates=(candidate("a", tokens=900),)),
        StepTimeModel(largest_extend_tokens=64),
        SETTINGS,
    )
    assert grown.chunk_tokens == 128  # at most twice what was measured


def test_offline_rows_are_not_admitted_beyond_the_decode_share() -> None:
    # 0.59 * 300 ms = 177 ms hold 10 ms + 33 rows * 5 ms; 32 decode already
    rows = tuple(row(f"r{i}") for i in range(32))
    two = (candidate("a", tokens=20), candidate("b", tokens=20))
    plan = decide(
        snapshot(offline_rows=rows, free_slots=100, candidates=two),
        MODEL,
        replace(SETTINGS, decode_share=0.59),
    )
    assert plan.offline_order == ("a",)


def test_the_reserve_of_a_full_pool_says_no_memory() -> None:
    full = MemoryView(
        total_tokens=10_000, available_tokens=900, growth_tokens=0, reserve_tokens=1_000
    )
    plan = decide(
        snapshot(
            memory=full, online=online(1, due_in_s=5.0), candidates=(candidate("a", tokens=20),)
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.reason is Reason.NO_MEMORY


def test_taken_slots_and_taken_decode_time_are_told_apart() -> None:
    # 34 rows take 180 ms, 0.6 of the TPOT SLO: nobody joins them
    state = snapshot(online=online(34, due_in_s=5.0), candidates=(candidate("a", tokens=20),))
    assert decide(state, MODEL, SETTINGS).reason is Reason.NO_DECODE_TIME
    assert decide(replace(state, free_slots=0), MODEL, SETTINGS).reason is Reason.NO_SLOT
    fewer = replace(state, online=online(2, due_in_s=5.0))
    assert decide(fewer, MODEL, SETTINGS).offline_order == ("a",)
    assert decide(replace(fewer, free_slots=0), MODEL, SETTINGS).reason is Reason.NO_SLOT


def test_a_result_delivered_one_iteration_late_halves_the_budget() -> None:
    # 200 ms in two iterations: 100 ms = 10 + 5 + 85 tokens
    plan = decide(
        snapshot(
            delivery_steps=2,
            online=online(1, due_in_s=0.2),
            candidates=(candidate("a", tokens=900),),
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.chunk_tokens == 85


def test_a_batch_in_flight_eats_into_the_budget() -> None:
    # 200 ms less 50 ms in flight: 150 = 10 + 5 + 135 tokens
    plan = decide(
        snapshot(
            in_flight_s=0.05,
            online=online(1, due_in_s=0.2),
            candidates=(candidate("a", tokens=900),),
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.chunk_tokens == 135


def test_with_nobody_online_a_model_that_thinks_everything_is_slow_still_lets_work_run() -> None:
    slow = replace(MODEL, weights_s=(9.0, *MODEL.weights_s[1:]))  # 9 s an iteration
    plan = decide(snapshot(candidates=(candidate("a", tokens=900),)), slow, SETTINGS)
    assert plan.chunk_tokens == SETTINGS.min_chunk_tokens


def test_online_prefill_gets_at_least_as_much_time_as_decoding_the_online_rows() -> None:
    # 60 rows take 310 ms, more than the TPOT SLO: 620 ms hold 310 tokens
    prompt = waiting("w", tokens=900, due_in_s=9.0)
    state = snapshot(online=online(60, due_in_s=-1.0), waiting_online=(prompt,))
    assert decide(state, MODEL, SETTINGS).chunk_tokens == 310
    # offline rows that cannot give way make the iteration longer, not its prefill larger
    rows = tuple(row(f"r{i}", releasable=False) for i in range(20))
    plan = decide(replace(state, offline_rows=OfflineRows.of(rows)), MODEL, SETTINGS)
    assert plan.chunk_tokens == 210


def test_a_chunk_of_few_tokens_waits_while_online_rows_would_pay_a_fixed_price_for_it() -> None:
    # mixing prefill in costs 60 ms at once: 30 tokens take 90 ms, 512 take 572 ms.
    # 3 ms a token against 1.1: less than half as efficient
    fixed = replace(MODEL, weights_s=(0.010, 0.060, *MODEL.weights_s[2:]))
    state = snapshot(online=online(1, due_in_s=0.105), candidates=(candidate("a", tokens=900),))
    assert decide(state, fixed, SETTINGS).reason is Reason.NO_SLACK
    # with 245 ms, 170 tokens take 230 ms: 1.35 ms a token
    later = snapshot(online=online(1, due_in_s=0.245), candidates=(candidate("a", tokens=900),))
    assert decide(later, fixed, SETTINGS).chunk_tokens == 170


def test_without_a_model_no_offline_row_decodes_beside_online_ones() -> None:
    rows = (row("a"), row("b", releasable=False), row("c"))
    plan = decide(
        snapshot(online=online(1, due_in_s=5.0), offline_rows=rows), StepTimeModel(), SETTINGS
    )
    assert sorted(plan.release) == ["a", "c"]
    alone = decide(snapshot(offline_rows=rows), StepTimeModel(), SETTINGS)
    assert alone.release == ()


@pytest.mark.parametrize(
    ("available", "due_in_s", "parked", "comes_back"),
    [
        (1_000 + 632, 0.2, 2, True),
        (1_000 + 631, 0.2, 2, False),  # less KV than two of its size came free
        (1_000 + 632, 0.19, 2, False),  # less than twice the time
        (1_000 + 632, 0.2, 1, False),  # a result of it may still be in flight
        (1_000, 0.01, 4, False),  # it has rested, but a chunk of 16 takes longer than that
    ],
)
def test_a_row_ends_its_rest_early_only_when_kv_and_time_clearly_grew(
    available: int, due_in_s: float, parked: int, comes_back: bool
) -> None:
    # It needs 300 + 16 tokens; it left when 1,000 were available and 0.1 s for offline work.
    rested = candidate("a", tokens=300, parked=parked)._replace(
        left_available_tokens=1_000, left_budget_s=0.1
    )
    state = snapshot(
        online=online(1, due_in_s=due_in_s),
        memory=memory(available=available, reserve=0),
        candidates=(rested,),
    )
    plan = decide(state, MODEL, SETTINGS)
    assert plan.offline_order == (("a",) if comes_back else ())


def test_nobody_ends_a_rest_early_of_whom_it_is_not_known_what_was_left() -> None:
    rested = candidate("a", tokens=300, parked=3)
    plan = decide(snapshot(candidates=(rested,)), MODEL, SETTINGS)
    assert plan.offline_order == ()
