"""What a plan is worth and which is taken. MODEL: 10 ms + 1 ms a token + 5 ms a row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from echo_sglang.domain.plan import ChunkAction, PlanKind, PlanOption, Reason, ReleaseCause
from echo_sglang.domain.snapshot import ChunkInProgress, OfflineCandidate, OfflineRows
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.policy.coscheduler import decide
from echo_sglang.policy.plans import Draft, benefit_tokens, best_of

from .builders import MODEL, SETTINGS, candidate, memory, online, row, snapshot, waiting


def cached(rid: str, *, tokens: int, prefix: int = 400, urgency: float = 1.0) -> OfflineCandidate:
    return candidate(rid, tokens=tokens)._replace(prefix_tokens=prefix, urgency=urgency)


def half_done(remaining: int, *, prefix: int = 100, parked: int = 0) -> ChunkInProgress:
    return ChunkInProgress(
        rid="half",
        service_class=ServiceClass.OFFLINE,
        remaining_tokens=remaining,
        prefix_tokens=prefix,
        parked_steps=parked,
    )


def option(
    kind: PlanKind, *, chunk: int, benefit: float, seconds: float = 1.0, released: int = 0
) -> PlanOption:
    return PlanOption(
        kind=kind, chunk_tokens=chunk, released=released, benefit_tokens=benefit, seconds=seconds
    )


def test_benefit_is_what_is_decoded_computed_and_served_from_the_cache() -> None:
    draft = Draft(
        kind=PlanKind.SIBLINGS,
        budget_s=1.0,
        tokens=70,
        offline_tokens=70,
        offline=(cached("a", tokens=40), cached("b", tokens=40)),
    )
    # 3 rows; 40 + 30 computed; 2 * 400 served
    assert benefit_tokens(draft, snapshot(), OfflineRows.of([row("r")] * 3)) == 3 + 70 + 800


def test_urgent_work_weighs_more() -> None:
    draft = Draft(
        kind=PlanKind.SIBLINGS,
        budget_s=1.0,
        tokens=50,
        offline_tokens=50,
        offline=(cached("a", tokens=50, urgency=3.0),),
    )
    rows = OfflineRows.of([replace(row("r"), urgency=2.0)])
    assert benefit_tokens(draft, snapshot(), rows) == 2 + 3 * 450


def test_what_others_must_compute_again_is_taken_off_as_often_as_it_is_hit() -> None:
    draft = Draft(
        kind=PlanKind.NEXT_GROUP,
        budget_s=1.0,
        tokens=100,
        offline_tokens=100,
        offline=(candidate("a", tokens=100),),
    )
    # one free token for the row, 60 for the prompt; 40 tokens evict what 3 requests would hit
    full = replace(memory(), free_tokens=61, victim_hits=3.0)
    assert benefit_tokens(draft, snapshot(memory=full), OfflineRows.of([row("r")])) == 101 - 40 * 3
    roomy = replace(full, free_tokens=200)
    assert benefit_tokens(draft, snapshot(memory=roomy), OfflineRows.of([row("r")])) == 101


def test_the_greatest_benefit_per_second_wins() -> None:
    slow = option(PlanKind.CHUNK, chunk=200, benefit=200, seconds=2.0)
    quick = option(PlanKind.SIBLINGS, chunk=60, benefit=150, seconds=1.0)
    assert best_of([slow, quick], 200, 0.01) == 1


def test_ties_go_to_the_fewest_rows_released_and_then_to_the_most_regular_chunk() -> None:
    many = option(PlanKind.CHUNK, chunk=100, benefit=100, released=2)
    far = option(PlanKind.CHUNK, chunk=160, benefit=100.5)
    near = option(PlanKind.NEXT_GROUP, chunk=90, benefit=100)
    assert best_of([many, far, near], 100, 0.01) == 2
    assert best_of([many, far, near], 150, 0.01) == 1


def test_offline_work_that_only_costs_runs_when_nothing_else_can() -> None:
    idle = option(PlanKind.KEEP, chunk=0, benefit=0.0)
    costly = option(PlanKind.NEXT_GROUP, chunk=90, benefit=-500.0)
    assert best_of([idle, costly], 0, 0.01) == 1
    decoding = option(PlanKind.KEEP, chunk=0, benefit=3.0)
    assert best_of([decoding, costly], 0, 0.01) == 0


def test_cached_siblings_run_while_the_half_done_prompt_gets_the_rest() -> None:
    # 200 ms: 10 + 5 + 185 tokens; a and b take 100 of them, the chunk 85
    plan = decide(
        snapshot(
            online=online(1, due_in_s=0.2),
            chunk=half_done(900),
            candidates=(cached("a", tokens=50), cached("b", tokens=50)),
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.kind is PlanKind.SIBLINGS
    assert plan.chunk_action is ChunkAction.CONTINUE
    assert plan.offline_order == ("a", "b")
    assert (plan.chunk_tokens, plan.chunk_limit_tokens) == (185, 85)


def test_a_sibling_that_would_be_cut_waits_for_the_place_of_the_half_done_prompt() -> None:
    plan = decide(
        snapshot(
            online=online(1, due_in_s=0.2),
            chunk=half_done(900),
            candidates=(cached("a", tokens=50), cached("b", tokens=150)),
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.offline_order == ("a",)
    assert plan.chunk_limit_tokens == 135


def test_a_half_done_prompt_does_not_sit_out_for_siblings_for_ever() -> None:
    # a takes all of the 185 tokens: the chunk sits out, but not a ninth time in a row
    def after(steps: int) -> ChunkAction:
        state = snapshot(
            online=online(1, due_in_s=0.2),
            chunk=half_done(900, parked=steps),
            candidates=(cached("a", tokens=185),),
        )
        return decide(state, MODEL, SETTINGS).chunk_action

    assert after(7) is ChunkAction.PARK
    assert after(8) is ChunkAction.CONTINUE


def test_a_new_group_begins_in_what_the_half_done_prompt_leaves() -> None:
    plan = decide(
        snapshot(
            online=online(1, due_in_s=0.2),
            chunk=half_done(60),
            candidates=(candidate("first", tokens=900),),
        ),
        MODEL,
        SETTINGS,
    )
    assert plan.kind is PlanKind.NEXT_GROUP
    assert (plan.chunk_tokens, plan.offline_order) == (185, ("first",))


def test_no_new_group_begins_while_a_half_done_prompt_comes_back_in_a_moment() -> None:
    resting = candidate("half", tokens=800, parked=1)._replace(rest_steps=2)
    behind = (candidate("cold", tokens=900), cached("warm", tokens=50))
    plan = decide(snapshot(candidates=(resting, *behind)), MODEL, SETTINGS)
    assert plan.offline_order == ("warm",)


def test_a_new_group_waits_while_it_would_evict_what_others_will_hit() -> None:
    # nothing is free, every token evicts one that 2 waiting requests will hit
    full = replace(memory(), free_tokens=0, victim_hits=2.0)
    state = snapshot(
        memory=full,
        online=online(1, due_in_s=0.5),
        offline_rows=(row("r"),),
        candidates=(candidate("cold", tokens=300),),
    )
    plan = decide(state, MODEL, SETTINGS)
    assert plan.reason is Reason.DECODE_FIRST
    assert not plan.runs_prefill
    # with nobody to wait for it goes on all the same
    assert decide(replace(state, offline_rows=OfflineRows()), MODEL, SETTINGS).runs_prefill


def test_the_log_shows_every_plan_considered_with_its_benefit_and_time() -> None:
    plan = decide(
        snapshot(
            online=online(1, due_in_s=0.2),
            offline_rows=(row("r"),),
            chunk=half_done(60),
            candidates=(cached("a", tokens=50), candidate("cold", tokens=900)),
        ),
        MODEL,
        SETTINGS,
    )
    kinds = [o.kind for o in plan.options]
    assert kinds == [PlanKind.KEEP, PlanKind.CHUNK, PlanKind.SIBLINGS, PlanKind.NEXT_GROUP]
    keep, chunk = plan.options[:2]
    assert (keep.benefit_tokens, keep.seconds) == (1.0, pytest.approx(0.020))
    assert (chunk.benefit_tokens, chunk.seconds) == (61.0, pytest.approx(0.080))
    # 10 + 2 rows * 5 leave 180 tokens: 60 + 50 + 70, and 400 from the cache
    assert plan.options[3].benefit_tokens == 1 + 180 + 400


def test_rows_that_give_way_say_why_and_what_keeping_them_would_have_taken() -> None:
    rows = tuple(row(f"r{i}") for i in range(12))
    plan = decide(snapshot(online=online(1, due_in_s=0.06), offline_rows=rows), MODEL, SETTINGS)
    assert plan.release_cause is ReleaseCause.TIME
    refused = plan.options[0]
    assert (refused.kind, refused.released, refused.feasible) == (PlanKind.KEEP, 0, False)
    assert refused.seconds == pytest.approx(0.075)
    lacking = snapshot(free_slots=0, waiting_online=(waiting("w", tokens=9),), offline_rows=rows)
    assert decide(lacking, MODEL, SETTINGS).release_cause is ReleaseCause.SHORTAGE
    grown = snapshot(memory=memory(available=500), online=online(1, due_in_s=5), offline_rows=rows)
    assert decide(grown, MODEL, SETTINGS).release_cause is ReleaseCause.RESERVE


def test_a_plan_of_equal_worth_keeps_the_batch_regular() -> None:
    # the chunk alone: 61 tokens; with the cold prompt behind it: 181. Not equal: the larger wins
    state = snapshot(
        online=online(1, due_in_s=0.2), chunk=half_done(60), candidates=(candidate("c", tokens=9),)
    )
    loose = replace(SETTINGS, equal_rate_share=0.5)
    assert decide(replace(state, last_chunk_tokens=60), MODEL, loose).chunk_tokens == 60
    assert decide(replace(state, last_chunk_tokens=69), MODEL, loose).chunk_tokens == 69
