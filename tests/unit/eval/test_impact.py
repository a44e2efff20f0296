"""The impact experiment compares like with like, and its bound is what arithmetic says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from echo_sglang.domain.batch import BatchShape
from echo_sglang.errors import WorkloadError
from echo_sglang.sim.catalog import device_from
from echo_sglang.sim.documents import DocumentQuestions
from echo_sglang.sim.spec import RunSpec
from eval.impact import ALONE, BOUNDED, DEVICE, UNRESTRICTED, Plan, rates_from, run, verdict
from eval.impact_bound import OnlineAlone, harvest_bound, portion, tokens_per_question

WORK = DocumentQuestions()
FEW = OnlineAlone(
    per_s=0.2, prompt_tokens=600, answer_tokens=200, busy_share=0.55, ttft_s=0.075, tpot_s=0.0125
)


class Steps:
    """A machine: 10 ms an iteration, 50 us a token, 0.1 us a KV token of decode rows."""

    def seconds(self, shape: BatchShape) -> float:
        tokens = shape.extend_tokens + shape.decode_rows
        return 0.010 + 50e-6 * tokens + 1e-7 * shape.decode_kv_tokens


def test_a_question_needs_its_share_of_the_document_itself_and_all_but_one_answer_token() -> None:
    assert tokens_per_question(WORK) == 4_000 / 10 + 60 + 63
    whole = portion(WORK, 523, BatchShape())
    assert (whole.extend_tokens, whole.decode_rows) == (460, 63)
    assert whole.extend_pairs == 4_000**2 / 20 + 60 * 4_000 + 60**2 / 2
    # Row i of 63 attends to the prompt and i tokens of the answer.
    assert whole.decode_kv_tokens == 63 * 4_060 + 63 * 64 / 2


def test_beside_online_rows_the_bound_is_the_time_allowed_over_the_price_of_a_question() -> None:
    # All tokens cost 50 us, KV of a question 63 * 4,060 + 2,016 tokens of 0.1 us.
    price_s = 523 * 50e-6 + 1e-7 * (63 * 4_060 + 2_016)
    bound = harvest_bound(Steps(), FEW, WORK, ttft=0.05, tpot=0.02)
    decode_s = 0.010 + 50e-6 + 1e-7 * (600 + 100)
    prefill_s = 0.010 + 50e-6 * 600
    decode_share = 0.55 - 0.2 * (prefill_s - decode_s)
    assert bound.beside_per_s == pytest.approx(0.02 * decode_share / price_s, rel=0.01)


def test_idle_time_is_used_until_the_mean_wait_is_what_was_allowed() -> None:
    bound = harvest_bound(Steps(), FEW, WORK, ttft=0.05, tpot=0.02)
    assert bound.idle_used_share * bound.iteration_s / 2.0 == pytest.approx(0.05 * 0.075)
    wide = harvest_bound(Steps(), FEW, WORK, ttft=1.0, tpot=0.02)
    assert wide.idle_used_share == pytest.approx(0.45)
    assert wide.iteration_s > bound.iteration_s


def test_more_impact_never_leaves_less() -> None:
    device = device_from(DEVICE)
    bounds = [
        harvest_bound(device, FEW, WORK, ttft=x, tpot=0.4 * x).per_s
        for x in (0.01, 0.02, 0.05, 0.1, 0.5)
    ]
    assert bounds == sorted(bounds)
    assert all(bound > 0.0 for bound in bounds)


def fake(function: Any, specs: Sequence[dict[str, Any]], *, jobs: int) -> Iterator[dict[str, Any]]:
    for values in specs:
        spec = RunSpec.from_json(values)
        assert spec.setup.echo is not None
        has_work = len(spec.recipes) == 2
        bounded = has_work and spec.setup.echo.impact_percent > 0.0
        late = 1.03 if bounded else 1.5 if has_work else 1.0
        harvest = 4.0 if bounded else 10.0
        yield {
            "summary": {
                "online_requests": 3,
                "device_busy": 0.5,
                "offline_per_s": harvest if has_work else None,
            },
            "ttfts_s": [0.07 * late, 0.08 * late, 0.1 * late * spec.seed],
            "tpots_s": [0.0125 * (1.0 + (late - 1.0) / 2.0)] * 3,
            "prompt_tokens": 1_800,
            "answer_tokens": 600,
        }


def test_quantiles_are_over_the_requests_of_all_seeds_and_judged_by_what_was_asked(
    tmp_path: Path,
) -> None:
    table = run(Plan(results=tmp_path, rates=((0.2, 60.0),), seeds=(1, 4)), fake)
    assert list(table["seeds"]) == ["1", "4", "all"]
    every = table[table["seeds"] == "all"].iloc[0]
    assert every["ttft_p50_ms"] == pytest.approx(80.0)
    assert every["ttft_p50_percent"] == pytest.approx(3.0)
    assert every["tpot_p99_percent"] == pytest.approx(1.5)
    assert every["of_unrestricted"] == pytest.approx(0.4)
    assert every["of_bound"] == pytest.approx(4.0 / every["bound_per_s"])
    assert all(verdict(table, 5.0).values())
    assert not verdict(table, 2.0)["0.2/s: TTFT p50 at most 2 % later"]
    assert (tmp_path / "impact.json").is_file()


def test_the_runs_of_a_seed_have_the_same_arrivals_and_only_one_has_no_bound() -> None:
    plan = Plan(results=Path("nowhere"))
    alone, bounded, free = (plan.spec(m, 0.2, 60.0, 3) for m in (ALONE, BOUNDED, UNRESTRICTED))
    assert alone.recipes == bounded.recipes[:1] == free.recipes[:1]
    assert alone.setup == bounded.setup
    assert bounded.setup.echo is not None and free.setup.echo is not None
    assert (bounded.setup.echo.impact_percent, free.setup.echo.impact_percent) == (5.0, 0.0)


@pytest.mark.parametrize("text", ["2", "2:x", "0:60", "2:-1", "2:60:1"])
def test_rates_that_cannot_be_are_refused_with_the_form_wanted(text: str) -> None:
    with pytest.raises(WorkloadError, match="--rates"):
        rates_from(text)


def test_an_impact_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="0"):
        Plan(results=tmp_path, percent=0.0)


def test_what_was_measured_is_not_run_again_and_gives_the_same_table(tmp_path: Path) -> None:
    plan = Plan(results=tmp_path, rates=((0.2, 60.0),), seeds=(1,))
    asked: list[int] = []

    def counting(function: Any, specs: Any, *, jobs: int) -> Iterator[dict[str, Any]]:
        asked.append(len(specs))
        return fake(function, specs, jobs=jobs)

    first, again = run(plan, counting), run(plan, counting)
    wider = run(replace(plan, seeds=(1, 2)), counting)
    assert asked == [3, 0, 3]
    assert first.equals(again)
    assert len(wider) == 3
