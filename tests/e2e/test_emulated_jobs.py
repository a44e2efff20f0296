"""Deadlines and fair shares of offline work on the emulated accelerator, beside online traffic.

Two chats a second, whose SLOs must hold whatever offline jobs want.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from echo_sglang.config import EchoConfig
from echo_sglang.sim.arrivals import Lengths, PoissonTraffic
from echo_sglang.sim.documents import DocumentQuestions
from echo_sglang.sim.processes import execute_all
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.spec import RunSpec

pytestmark = pytest.mark.slow

WINDOW_S = 16.0
DUE_S = 14.0

BULK = DocumentQuestions(
    documents=60, questions=8, document_tokens=2000, output_tokens=32, job="bulk", weight=10.0
)
TIGHT = replace(BULK, documents=8, arrival_s=1.0, job="tight", weight=1.0)
IMPOSSIBLE = replace(TIGHT, documents=40, deadline_s=5.0)


def spec_of(*offline: DocumentQuestions, turn_tokens: int = 8_192) -> RunSpec:
    return RunSpec(
        device="A100-80G:Llama-3.1-8B",
        setup=ServerSetup(
            echo=EchoConfig(slo_ttft_ms=500, slo_tpot_ms=50, turn_tokens=turn_tokens),
            kv_tokens=60_000,
            context_tokens=4096,
            max_running=64,
            chunk_tokens=2048,
            mixed=True,
        ),
        recipes=(
            PoissonTraffic(rate_per_s=2.0, window_s=WINDOW_S, output=Lengths(mean=40)),
            *offline,
        ),
        seed=1,
        window_s=WINDOW_S,
    )


@pytest.fixture(scope="module")
def summaries() -> Mapping[str, dict[str, Any]]:
    specs = {
        "best effort": spec_of(BULK, TIGHT),
        "deadline": spec_of(BULK, replace(TIGHT, deadline_s=DUE_S)),
        "impossible": spec_of(BULK, IMPOSSIBLE),
        "shares": spec_of(
            replace(BULK, job="three", weight=3.0), replace(BULK, job="one", weight=1.0)
        ),
    }
    results = execute_all(list(specs.values()), jobs=2)
    return {name: result["summary"] for name, result in zip(specs, results, strict=True)}


def test_a_tight_deadline_is_met_where_best_effort_misses_it(
    summaries: Mapping[str, dict[str, Any]],
) -> None:
    best_effort = summaries["best effort"]["offline_jobs"]["tight"]
    assert best_effort["done"] < best_effort["requests"] or best_effort["last_done_s"] > DUE_S
    assert summaries["deadline"]["offline_jobs"]["tight"]["late"] == 0


def test_a_deadline_costs_the_others_their_place_but_little_of_the_work(
    summaries: Mapping[str, dict[str, Any]],
) -> None:
    rates = [summaries[name]["offline_per_s"] for name in ("deadline", "best effort")]
    assert rates[0] > 0.85 * rates[1]


def test_work_that_cannot_be_in_time_is_never_done_at_the_cost_of_online_requests(
    summaries: Mapping[str, dict[str, Any]],
) -> None:
    late = summaries["impossible"]["offline_jobs"]["tight"]
    assert 0 < late["late"] <= late["requests"]
    for summary in summaries.values():
        assert summary["attainment"] == 1.0, summary


def test_jobs_are_served_by_their_weights(summaries: Mapping[str, dict[str, Any]]) -> None:
    jobs = summaries["shares"]["offline_jobs"]
    assert jobs["three"]["done"] / jobs["one"]["done"] == pytest.approx(3.0, rel=0.2)
    assert summaries["shares"]["offline_hit_rate"] > 0.97 * summaries["shares"]["optimal_hit_rate"]
