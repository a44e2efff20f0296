"""What holds for every decision, whatever the server looks like."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from echo_sglang.domain.plan import ChunkAction, PlanKind, Reason
from echo_sglang.domain.snapshot import (
    ChunkInProgress,
    MemoryView,
    OfflineCandidate,
    OfflineRow,
    OfflineRows,
    OnlineLoad,
    Snapshot,
    WaitingOnline,
)
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.estimate.step_time import StepTimeModel
from echo_sglang.policy.coscheduler import decide
from echo_sglang.policy.settings import CoschedulerSettings
from echo_sglang.policy.slack import SloSettings
from tests.examples import examples

SETTINGS = CoschedulerSettings(slo=SloSettings(ttft_slo_s=2.0, tpot_slo_s=0.3))
NOW_S = 100.0
tokens = st.integers(1, 3_000)
seconds = st.floats(-3.0, 3.0)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    rows = draw(st.integers(0, 20))
    due_s = NOW_S + draw(seconds)
    return Snapshot(
        step=draw(st.integers(1, 1_000)),
        now_s=NOW_S,
        mixed=draw(st.booleans()),
        page_size=draw(st.sampled_from([1, 16])),
        chunk_cap_tokens=draw(st.integers(16, 2_048)),
        free_slots=draw(st.integers(0, 30)),
        memory=MemoryView(
            total_tokens=20_000,
            available_tokens=draw(st.integers(0, 20_000)),
            growth_tokens=draw(st.integers(0, 2_000)),
            reserve_tokens=draw(st.integers(0, 5_000)),
            free_tokens=draw(st.none() | st.integers(0, 2_000)),
            victim_hits=draw(st.floats(0.0, 20.0)),
        ),
        delivery_steps=draw(st.sampled_from([1, 2])),
        in_flight_s=draw(st.floats(0.0, 0.5)),
        online=OnlineLoad(
            rows=rows,
            kv_tokens=300 * rows,
            earliest_deadline_s=due_s if rows else None,
            earliest_gap_s=due_s + 0.6 if rows else None,
        ),
        offline_rows=OfflineRows.of(
            OfflineRow(
                rid=f"row{i}",
                kv_tokens=draw(tokens),
                private_tokens=draw(st.integers(0, 500)),
                output_tokens=draw(st.integers(0, 50)),
                remaining_tokens=draw(st.integers(0, 50)),
                releasable=draw(st.booleans()),
            )
            for i in range(draw(st.integers(0, 12)))
        ),
        waiting_online=tuple(
            WaitingOnline(
                rid=f"online{i}",
                deadline_s=NOW_S + draw(seconds),
                extend_tokens=draw(tokens),
                prefix_tokens=draw(st.integers(0, 500)),
                max_new_tokens=24,
            )
            for i in range(draw(st.integers(0, 6)))
        ),
        chunk=draw(st.none() | chunks()),
        candidates=tuple(
            OfflineCandidate(
                rid=f"offline{i}",
                extend_tokens=draw(tokens),
                prefix_tokens=draw(st.integers(0, 2_000)),
                max_new_tokens=16,
                steps_parked=draw(st.none() | st.integers(0, 9)),
                rest_steps=draw(st.sampled_from([0, 2, 4, 8])),
                urgency=draw(st.floats(1.0, 4.0)),
            )
            for i in range(draw(st.integers(0, 8)))
        ),
    )


@st.composite
def chunks(draw: st.DrawFn) -> ChunkInProgress:
    online = draw(st.booleans())
    return ChunkInProgress(
        rid="half",
        service_class=ServiceClass.ONLINE if online else ServiceClass.OFFLINE,
        remaining_tokens=draw(tokens),
        prefix_tokens=draw(tokens),
        deadline_s=NOW_S + draw(seconds) if online else None,
        parked_steps=draw(st.integers(0, 12)),
        releasable=not online and draw(st.booleans()),
    )


@st.composite
def models(draw: st.DrawFn) -> StepTimeModel:
    if draw(st.booleans()) and draw(st.booleans()):
        return StepTimeModel(largest_extend_tokens=draw(st.integers(0, 100)))
    small = st.floats(0.0, 0.01)
    return StepTimeModel(
        weights_s=(
            draw(st.floats(0.0, 0.2)),
            draw(st.floats(0.0, 0.1)),
            draw(small),
            *(0.0, 0.0, 0.0),
            *(1e-7, 1e-7),
            draw(small),
            *(0.0, 1e-6, 0.0, 0.0),
        ),
        largest_extend_tokens=draw(st.integers(1, 2_000)),
        samples=100,
    )


@examples(400)
@given(snapshot=snapshots(), model=models())
def test_every_plan_keeps_its_bounds(snapshot: Snapshot, model: StepTimeModel) -> None:
    plan = decide(snapshot, model, SETTINGS)
    assert plan == decide(snapshot, model, SETTINGS)
    assert 0 <= plan.offline_tokens <= plan.chunk_tokens <= snapshot.chunk_cap_tokens
    releasable = {row.rid for row in snapshot.offline_rows if row.releasable}
    assert len(set(plan.release)) == len(plan.release)
    assert set(plan.release) <= releasable
    assert not (plan.release and plan.offline_order)
    assert set(plan.offline_order) <= {c.rid for c in snapshot.candidates}
    assert (plan.chunk_action is ChunkAction.NONE) == (snapshot.chunk is None)
    if plan.chunk_action is ChunkAction.RELEASE:
        assert snapshot.chunk is not None and snapshot.chunk.releasable


@examples(400)
@given(snapshot=snapshots(), model=models())
def test_the_plan_taken_was_considered_and_none_advances_more_per_second(
    snapshot: Snapshot, model: StepTimeModel
) -> None:
    plan = decide(snapshot, model, SETTINGS)
    assert len(plan.options) <= 5
    feasible = [option for option in plan.options if option.feasible]
    (taken,) = [o for o in feasible if o.kind is plan.kind]
    assert (taken.chunk_tokens, taken.seconds) == (plan.chunk_tokens, plan.predicted_s)
    assert taken.released == len(plan.release)
    if taken.benefit_tokens > 0.0:
        best = max(option.rate for option in feasible)
        assert taken.rate >= best * (1.0 - SETTINGS.equal_rate_share)
    if not plan.runs_prefill:
        assert plan.kind is PlanKind.KEEP
    if plan.chunk_limit_tokens is not None:
        assert plan.chunk_action is ChunkAction.CONTINUE
        assert 0 < plan.chunk_limit_tokens < plan.chunk_tokens


@examples(200)
@given(snapshot=snapshots(), model=models(), more_s=st.floats(0.0, 1.0))
def test_more_slack_never_means_fewer_tokens_for_the_same_plan_or_more_rows_released(
    snapshot: Snapshot, model: StepTimeModel, more_s: float
) -> None:
    online, rows = snapshot.online, snapshot.offline_rows
    if online.earliest_deadline_s is None or online.earliest_gap_s is None:
        return
    # Where some cannot give way, nobody does while even that would not suffice; with more time
    # it may.
    snapshot = replace(snapshot, offline_rows=replace(rows, releasable=(True,) * len(rows)))
    later = replace(
        online,
        earliest_deadline_s=online.earliest_deadline_s + more_s,
        earliest_gap_s=online.earliest_gap_s + more_s,
    )
    before = decide(snapshot, model, SETTINGS)
    after = decide(replace(snapshot, online=later), model, SETTINGS)
    assert len(after.release) <= len(before.release)
    if len(after.release) < len(before.release) or snapshot.waiting_online:
        return
    chunks = {o.kind: o.chunk_tokens for o in before.options if o.feasible}
    for option in after.options:
        if option.feasible and option.kind in (PlanKind.CHUNK, PlanKind.NEXT_GROUP):
            assert option.chunk_tokens >= chunks.get(option.kind, 0)


@examples(400)
@given(snapshot=snapshots(), model=models())
def test_a_request_that_rests_is_not_admitted(snapshot: Snapshot, model: StepTimeModel) -> None:
    admitted = set(decide(snapshot, model, SETTINGS).offline_order)
    assert not admitted & {c.rid for c in snapshot.candidates if c.rests}


@examples(400)
@given(snapshot=snapshots(), model=models())
def test_online_is_never_left_waiting_for_offline_work(
    snapshot: Snapshot, model: StepTimeModel
) -> None:
    plan = decide(snapshot, model, SETTINGS)
    if snapshot.waiting_online:
        assert plan.runs_prefill
        assert set(plan.online_order) == {w.rid for w in snapshot.waiting_online}
        chunk = snapshot.chunk
        if chunk is not None and chunk.service_class is ServiceClass.OFFLINE:
            going_on = plan.chunk_action is ChunkAction.CONTINUE
            assert not (going_on and chunk.releasable)
        online_tokens = sum(w.extend_tokens for w in snapshot.waiting_online)
        if plan.offline_order:
            assert plan.chunk_tokens - plan.offline_tokens >= online_tokens


@examples(400)
@given(snapshot=snapshots(), model=models())
def test_offline_tokens_beside_online_rows_fit_the_budget(
    snapshot: Snapshot, model: StepTimeModel
) -> None:
    plan = decide(snapshot, model, SETTINGS)
    stuck = snapshot.chunk is not None and not snapshot.chunk.releasable
    if plan.offline_tokens and snapshot.online.rows and not stuck:
        assert model.trained
        assert plan.predicted_s <= plan.budget_s
        assert plan.chunk_tokens <= max(
            2 * model.largest_extend_tokens, plan.chunk_tokens - plan.offline_tokens
        )
    chunk_is_online = (
        snapshot.chunk is not None and snapshot.chunk.service_class is ServiceClass.ONLINE
    )
    if not snapshot.online.rows and not snapshot.waiting_online and not chunk_is_online:
        ready = [
            c
            for c in snapshot.candidates[:1]
            if not c.rests
            and c.extend_tokens + 16 + snapshot.page_size
            <= snapshot.memory.available_tokens
            - snapshot.memory.growth_tokens
            - snapshot.memory.reserve_tokens
        ]
        idle_slots = snapshot.free_slots > 0 and not snapshot.offline_rows
        if snapshot.chunk is not None or (ready and idle_slots):
            # Nobody is harmed: work goes on, if only that of rows that decode.
            rows_go_on = snapshot.offline_rows and plan.reason is Reason.DECODE_FIRST
            assert plan.runs_prefill or rows_go_on
