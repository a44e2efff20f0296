from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from echo_sglang.errors import WorkloadError
from echo_sglang.sim.documents import Order
from echo_sglang.sim.metrics import Summary
from echo_sglang.sim.spec import RunSpec
from eval import emulated
from eval.commands import emulated_plan_from
from eval.emulated import Plan
from eval.emulated_contenders import (
    CONTENDERS,
    ECHO,
    ECHO_NO_CACHE,
    ONLINE_ALONE,
    STOCK_ESTIMATOR,
    STOCK_FASTEST,
    STOCK_PRIORITY,
    STOCK_TUNED,
)
from eval.emulated_report import TABLE_COLUMNS, median_table, verdict
from eval.emulated_scenarios import scenario_named
from eval.run import build_parser

SUMMARY_FIELDS = tuple(field.name for field in dataclasses.fields(Summary))


class FakeDevice:
    """Counts what is run. A chunk of 512 is fastest among those that attain; lfu beats lru."""

    def __init__(self) -> None:
        self.specs: list[RunSpec] = []

    def __call__(self, specs: Sequence[RunSpec], *, jobs: int) -> Iterator[dict[str, Any]]:
        for spec in specs:
            self.specs.append(spec)
            yield {"spec": spec.to_json(), "digest": spec.digest, "summary": self._summary(spec)}

    def _summary(self, spec: RunSpec) -> dict[str, Any]:
        setup = spec.setup
        lfu = setup.server_args.get("radix_eviction_policy") == "lfu"
        return dict.fromkeys(SUMMARY_FIELDS, 0.5) | {
            "attainment": 1.0 if setup.chunk_tokens <= 512 else 0.9,
            "offline_per_s": setup.chunk_tokens + lfu + setup.mixed,
            "batches_sha1": "x",
            "offline_jobs": {"job": {"done": 3}},
        }


def plan_in(folder: Path, **fields: Any) -> Plan:
    scenario = scenario_named(
        "poisson", data=Path("nowhere"), window_s=fields.pop("window_s", 300.0), documents=4
    )
    return Plan(
        results=folder,
        device="A100-80G:Llama-3.1-8B",
        scenarios=(scenario,),
        **{"orders": (Order.SHUFFLED,)} | fields,
    )


def test_the_best_stock_is_the_fastest_that_attains_enough(tmp_path: Path) -> None:
    device = FakeDevice()
    emulated.run(plan_in(tmp_path, contenders=(STOCK_TUNED,)), device)
    *searched, final = device.specs
    # 4 chunk sizes, mixed or not; then the winner with 2 more evictions.
    assert len(searched) == 10
    assert {spec.seed for spec in searched} == {emulated.TUNING_SEED}
    assert {spec.window_s for spec in searched} == {60.0}
    assert (final.seed, final.window_s) == (1, 300.0)
    assert (final.setup.chunk_tokens, final.setup.mixed) == (512, True)
    assert final.setup.server_args["radix_eviction_policy"] == "lfu"


def test_the_fastest_stock_is_found_in_the_same_search(tmp_path: Path) -> None:
    device = FakeDevice()
    emulated.run(plan_in(tmp_path, contenders=(STOCK_TUNED, STOCK_FASTEST)), device)
    finals = [spec.setup for spec in device.specs if spec.window_s == 300.0]
    assert [(setup.chunk_tokens, setup.mixed) for setup in finals] == [(512, True), (2048, True)]
    # The second round differs: two more evictions for either winner.
    assert len(device.specs) == 8 + 2 + 2 + 2


def test_if_none_attains_enough_the_best_attaining_is_taken() -> None:
    summaries = {
        "fast": {"attainment": 0.2, "offline_per_s": 9.0},
        "slow": {"attainment": 0.7, "offline_per_s": 1.0},
        "slower": {"attainment": 0.7, "offline_per_s": 0.5},
    }
    assert emulated.best_setup(summaries) == "slow"


def test_finished_cells_are_not_measured_again(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, contenders=(ONLINE_ALONE, ECHO), seeds=(1, 2))
    device = FakeDevice()
    first = emulated.run(plan, device)
    assert len(device.specs) == 4
    again = emulated.run(plan, device)
    assert len(device.specs) == 4
    assert first.equals(again)
    assert set(first["num_seeds"]) == {2}


def test_a_cell_of_another_spec_is_measured_again(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, contenders=(ECHO,))
    device = FakeDevice()
    emulated.run(plan, device)
    emulated.run(replace(plan, kv_tokens=100_000), device)
    assert [spec.setup.kv_tokens for spec in device.specs] == [400_000, 100_000]


def test_results_say_where_they_come_from(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, contenders=(ECHO,))
    emulated.plot(plan, emulated.run(plan, FakeDevice()))
    result = json.loads((tmp_path / "emulated.json").read_text("utf-8"))
    assert result["provenance"]["hardware"] == "emulated A100-80G:Llama-3.1-8B"
    assert len(result["medians"]) == 1
    assert (tmp_path / "table.txt").is_file() and (tmp_path / "cells.csv").is_file()
    assert (tmp_path / "poisson+documents.png").stat().st_size > 5000
    assert set(result["meaning"]) <= set(TABLE_COLUMNS)


def test_online_alone_is_the_same_traffic_without_documents(tmp_path: Path) -> None:
    device = FakeDevice()
    contenders = (ONLINE_ALONE, ECHO)
    emulated.run(plan_in(tmp_path, contenders=contenders, window_s=20.0), device)
    alone, beside = (spec.workload() for spec in device.specs)
    assert alone.online == beside.online and alone.offline == ()
    assert len(beside.offline) == 40


def test_the_command_line_makes_a_plan() -> None:
    arguments = build_parser().parse_args(
        ["emulated", "--scenarios", "poisson+documents,azure-code+unshared", "--seeds", "1,2",
         "--echo-server-args", '{"page_size": 16}']
    )  # fmt: skip
    plan = emulated_plan_from(arguments)
    assert [s.name for s in plan.scenarios] == ["poisson+documents", "azure-code+unshared"]
    assert not plan.scenarios[1].has_documents
    assert plan.seeds == (1, 2)
    assert plan.setup(ECHO, plan.scenarios[0]).server_args == {"page_size": 16}


@pytest.mark.parametrize("name", ["bursts", "poisson+magic", ""])
def test_an_unknown_scenario_is_answered_with_what_exists(name: str) -> None:
    with pytest.raises(WorkloadError, match="azure-conv"):
        scenario_named(name, data=Path("x"), window_s=1.0, documents=1)


def test_an_unknown_contender_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="stock-tuned"):
        plan_in(tmp_path, contenders=("vllm",))


def test_the_ablation_adds_one_part_at_a_time(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    (scenario,) = plan.scenarios
    stock, bounded, scheduled, whole = (
        plan.setup(name, scenario)
        for name in (STOCK_PRIORITY, STOCK_ESTIMATOR, ECHO_NO_CACHE, ECHO)
    )
    # BS+E is BS, mixed, with iterations held to Echo's share of the TPOT SLO: 0.85 x 50 ms.
    assert bounded == replace(stock, mixed=True, bound_s=0.85 * 0.05)
    assert scheduled.echo is not None and whole.echo is not None
    assert scheduled.echo == replace(whole.echo, eviction="lru")
    assert replace(scheduled, echo=None) == replace(whole, echo=None)


def test_every_scenario_has_its_own_slo() -> None:
    arguments = build_parser().parse_args(["emulated", "--scenarios", "poisson,azure-conv"])
    poisson, azure = (plan := emulated_plan_from(arguments)).scenarios
    assert (plan.slo_of(poisson).ttft_s, plan.slo_of(azure).ttft_s) == (0.5, 1.5)
    config = plan.setup(ECHO, azure).echo
    assert config is not None and (config.slo_ttft_ms, config.slo_tpot_ms) == (1500.0, 50.0)


def test_by_default_every_traffic_meets_every_kind_of_offline_work() -> None:
    plan = emulated_plan_from(build_parser().parse_args(["emulated"]))
    assert len({scenario.name for scenario in plan.scenarios}) == 9
    assert plan.contenders == CONTENDERS


def test_a_wrong_slo_is_answered_with_its_form() -> None:
    with pytest.raises(WorkloadError, match="TTFT,TPOT in milliseconds"):
        emulated_plan_from(build_parser().parse_args(["emulated", "--slo", "500"]))


def table_of(rows: list[tuple[str, int, float, float]]) -> pd.DataFrame:
    """Of (contender, seed, attainment, offline/s), shuffled."""
    numbers = dict.fromkeys(SUMMARY_FIELDS, 0.5)
    return pd.DataFrame(
        [
            numbers
            | {
                "scenario": "s",
                "contender": contender,
                "order": "-" if contender == ONLINE_ALONE else "shuffled",
                "seed": seed,
                "attainment": attained,
                "offline_per_s": per_s,
            }
            for contender, seed, attained, per_s in rows
        ]
    )


def test_throughput_counts_only_where_the_slo_is_kept() -> None:
    medians = median_table(
        table_of([(ECHO, 1, 0.995, 7.0), (ECHO, 2, 0.99, 9.0), (STOCK_TUNED, 1, 0.98, 2.0)])
    )
    at_slo = medians.set_index("contender")["at_slo_per_s"]
    assert at_slo[ECHO] == 8.0 and pd.isna(at_slo[STOCK_TUNED])
    found = verdict(medians)["s shuffled"]
    assert found == {"echo_per_s": 8.0, "over_tuned_stock": None, "over_fastest_stock": None}


def test_the_fastest_stock_is_compared_with_whatever_it_attains() -> None:
    medians = median_table(table_of([(ECHO, 1, 1.0, 6.0), (STOCK_FASTEST, 1, 0.0, 4.0)]))
    assert verdict(medians)["s shuffled"]["over_fastest_stock"] == 1.5


def test_where_online_alone_misses_one_point_less_is_kept_too() -> None:
    medians = median_table(
        table_of([(ONLINE_ALONE, 1, 0.9, 0.0), (ECHO, 1, 0.89, 6.0), (STOCK_TUNED, 1, 0.9, 2.0)])
    )
    found = verdict(medians)["s shuffled"]
    assert (found["echo_per_s"], found["over_tuned_stock"]) == (6.0, 3.0)
