"""The emulated accelerator under the real scheduler, stock and Echo, small enough for a test.

A run itself checks that every request is answered once and whole (EmulationError), and SGLang
that no KV is lost once everything is answered.
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

ECHO = EchoConfig(slo_ttft_ms=500, slo_tpot_ms=50)
SMALL = ServerSetup(kv_tokens=30_000, context_tokens=4096, max_running=64, chunk_tokens=1024)
SETUPS = {
    "stock": replace(SMALL, priority=True),
    "stock, mixed, no overlap": replace(SMALL, priority=True, mixed=True, overlap=False),
    "stock, estimator": replace(SMALL, priority=True, mixed=True, bound_s=0.03),
    "echo": replace(SMALL, echo=ECHO, mixed=True),
    "echo, bounded by impact": replace(SMALL, echo=replace(ECHO, impact_percent=20.0), mixed=True),
    "echo, separate, no overlap": replace(SMALL, echo=ECHO, overlap=False),
}
WINDOW_S = 8.0


def spec_of(setup: ServerSetup, *, seed: int = 1, computes: bool = False) -> RunSpec:
    """Two chats a second beside 40 questions about 8 documents, of which 7 fill the KV."""
    return RunSpec(
        device="A100-80G:Llama-3.1-8B",
        setup=setup,
        recipes=(
            PoissonTraffic(rate_per_s=2.0, window_s=WINDOW_S, output=Lengths(mean=40)),
            DocumentQuestions(documents=8, questions=5, output_tokens=32),
        ),
        seed=seed,
        window_s=WINDOW_S,
        computes=computes,
    )


@pytest.fixture(scope="module")
def results() -> Mapping[str, dict[str, Any]]:
    """By name: every setup, every setup with the tiny model run too, and two for chance."""
    specs = {name: spec_of(setup) for name, setup in SETUPS.items()}
    for name, setup in SETUPS.items():
        specs[f"{name}, computed"] = spec_of(setup, computes=True)
    specs["stock, few slots"] = spec_of(replace(SETUPS["stock"], max_running=6))
    specs["echo again"] = spec_of(SETUPS["echo"])
    specs["echo, another seed"] = spec_of(SETUPS["echo"], seed=2)
    return dict(zip(specs, execute_all(list(specs.values()), jobs=2), strict=True))


@pytest.mark.parametrize("name", SETUPS)
def test_offline_work_is_done_beside_online_traffic(
    results: Mapping[str, dict[str, Any]], name: str
) -> None:
    summary = results[name]["summary"]
    assert summary["online_requests"] > 5
    assert summary["offline_done"] > 0
    assert 0.0 < summary["share_of_limit"] < 1.0
    assert summary["offline_hit_rate"] <= 1.0


@pytest.mark.parametrize("name", SETUPS)
def test_the_same_batches_run_when_the_model_is_really_computed(
    results: Mapping[str, dict[str, Any]], name: str
) -> None:
    emulated, computed = results[name], results[f"{name}, computed"]
    assert emulated["summary"]["batches_sha1"] == computed["summary"]["batches_sha1"]
    assert emulated["summary"]["iterations"] == computed["summary"]["iterations"] > 100


def test_a_seed_decides_every_batch(results: Mapping[str, dict[str, Any]]) -> None:
    first, again, other = (
        results[name]["summary"]["batches_sha1"]
        for name in ("echo", "echo again", "echo, another seed")
    )
    assert first == again != other


def test_setups_differ_in_what_they_run(results: Mapping[str, dict[str, Any]]) -> None:
    assert len({results[name]["summary"]["batches_sha1"] for name in SETUPS}) == len(SETUPS)


def test_echo_keeps_its_slos_with_offline_work_beside(
    results: Mapping[str, dict[str, Any]],
) -> None:
    for name in ("echo", "echo, another seed"):
        assert results[name]["summary"]["attainment"] >= 0.99, results[name]["summary"]
    assert results["stock"]["summary"]["attainment"] < 0.9


def test_stock_bounded_by_the_estimator_keeps_its_iterations_short(
    results: Mapping[str, dict[str, Any]],
) -> None:
    assert results["stock, estimator"]["summary"]["tpot_p99_s"] <= 0.03
    assert results["stock, mixed, no overlap"]["summary"]["tpot_p99_s"] > 0.06


def test_stock_takes_slots_from_offline_rows_and_that_is_counted(
    results: Mapping[str, dict[str, Any]],
) -> None:
    assert results["stock, few slots"]["summary"]["preemptions"] > 0


def test_offline_work_is_neither_computed_twice_nor_sent_away_again_and_again(
    results: Mapping[str, dict[str, Any]],
) -> None:
    for name in ("echo", "echo, another seed"):
        summary, counters = results[name]["summary"], results[name]["counters"]
        assert summary["recomputed_tokens"] == 0
        # an online prompt that must be cut takes the place of a half-done one; no row is disturbed
        assert counters.get("rows_released", 0) <= 2, counters
        assert summary["preemptions_per_online"] < 1.0
        assert summary["offline_hit_rate"] > summary["optimal_hit_rate"] - 0.05, summary
