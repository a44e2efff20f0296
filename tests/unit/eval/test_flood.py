"""A flood is sent at one moment, and messages are told apart by when they were due."""

from __future__ import annotations

from pathlib import Path

import pytest

from echo_sglang.errors import WorkloadError
from eval.flood import DURING_S, FLOOD_AT_S, WINDOW_S, Plan, parts
from eval.harness.records import UNFINISHED, OnlineRecord


def answered(due_s: float, ttft_s: float | None) -> OnlineRecord:
    return OnlineRecord(
        index=0,
        due_s=due_s,
        sent_s=due_s,
        first_s=None if ttft_s is None else due_s + ttft_s,
        last_s=None if ttft_s is None else due_s + ttft_s + 1.0,
        stopped_s=due_s + 9.0,
        max_gap_s=0.1,
        prompt_tokens=10,
        output_tokens=5,
        service_tier="default",
        error=UNFINISHED if ttft_s is None else None,
    )


def test_messages_count_where_they_were_due_and_the_unanswered_as_long_as_they_waited() -> None:
    after_s = FLOOD_AT_S + DURING_S
    records = [
        answered(1.0, 5.0),
        answered(10.0, 0.1),
        answered(12.0, 0.3),
        answered(FLOOD_AT_S, 2.0),
        answered(FLOOD_AT_S + 1.0, None),
        answered(after_s, 0.2),
    ]
    before, during, after = parts(records)
    assert (before["messages"], before["errors"]) == (2, 0)
    assert before["ttft_p50_ms"] == pytest.approx(200.0)
    assert (during["messages"], during["errors"]) == (2, 1)
    assert during["ttft_max_ms"] == pytest.approx(9000.0)
    assert (after["messages"], after["ttft_max_ms"]) == (1, pytest.approx(200.0))


def test_the_flood_has_so_many_requests_and_nothing_online(tmp_path: Path) -> None:
    plan = Plan(results=tmp_path, model_path=tmp_path, seed=3)
    flood, online = plan.flood(600), plan.online()
    assert (len(flood.offline), len(flood.online)) == (600, 0)
    assert len({request.message for request in flood.offline}) == 600
    assert FLOOD_AT_S + flood.config.window_s == WINDOW_S
    assert (len(online.offline), online.config.window_s) == (0, WINDOW_S)
    assert any(FLOOD_AT_S < request.arrival_s < FLOOD_AT_S + DURING_S for request in online.online)


@pytest.mark.parametrize("wrong", [{"servers": ("vllm",)}, {"floods": (0,)}, {"floods": ()}])
def test_what_cannot_be_run_is_refused(tmp_path: Path, wrong: dict[str, tuple[object]]) -> None:
    with pytest.raises(WorkloadError):
        Plan(results=tmp_path, model_path=tmp_path, **wrong)  # type: ignore[arg-type]
