from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from echo_sglang.errors import WorkloadError
from echo_sglang.sim.documents import Order
from echo_sglang.sim.spec import RunSpec
from eval import emulated
from eval.commands import emulated_plan_from
from eval.emulated import Plan
from eval.emulated_scenarios import scenario_named
from eval.run import build_parser

SUMMARY_FIELDS = tuple(emulated.TABLE_COLUMNS)


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
    emulated.run(plan_in(tmp_path, contenders=(emulated.STOCK_TUNED,)), device)
    *searched, final = device.specs
    # 4 chunk sizes, mixed or not; then the winner with 2 more evictions.
    assert len(searched) == 10
    assert {spec.seed for spec in searched} == {emulated.TUNING_SEED}
    assert {spec.window_s for spec in searched} == {60.0}
    assert (final.seed, final.window_s) == (1, 300.0)
    assert (final.setup.chunk_tokens, final.setup.mixed) == (512, True)
    assert final.setup.server_args["radix_eviction_policy"] == "lfu"


def test_if_none_attains_enough_the_best_attaining_is_taken() -> None:
    summaries = {
        "fast": {"attainment": 0.2, "offline_per_s": 9.0},
        "slow": {"attainment": 0.7, "offline_per_s": 1.0},
        "slower": {"attainment": 0.7, "offline_per_s": 0.5},
    }
    assert emulated.best_setup(summaries) == "slow"


def test_finished_cells_are_not_measured_again(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, contenders=(emulated.ONLINE_ALONE, emulated.ECHO), seeds=(1, 2))
    device = FakeDevice()
    first = emulated.run(plan, device)
    assert len(device.specs) == 4
    again = emulated.run(plan, device)
    assert len(device.specs) == 4
    assert first.equals(again)
    assert set(first["num_seeds"]) == {2}


def test_a_cell_of_another_spec_is_measured_again(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, contenders=(emulated.ECHO,))
    device = FakeDevice()
    emulated.run(plan, device)
    emulated.run(replace(plan, kv_tokens=100_000), device)
    assert [spec.setup.kv_tokens for spec in device.specs] == [400_000, 100_000]


def test_results_say_where_they_come_from(tmp_path: Path) -> None:
    emulated.run(plan_in(tmp_path, contenders=(emulated.ECHO,)), FakeDevice())
    result = json.loads((tmp_path / "emulated.json").read_text("utf-8"))
    assert result["provenance"]["hardware"] == "emulated A100-80G:Llama-3.1-8B"
    assert len(result["medians"]) == 1
    assert (tmp_path / "table.txt").is_file() and (tmp_path / "cells.csv").is_file()


def test_online_alone_is_the_same_traffic_without_documents(tmp_path: Path) -> None:
    device = FakeDevice()
    contenders = (emulated.ONLINE_ALONE, emulated.ECHO)
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
    assert emulated.echo_setup(plan).server_args == {"page_size": 16}


@pytest.mark.parametrize("name", ["bursts", "poisson+magic", ""])
def test_an_unknown_scenario_is_answered_with_what_exists(name: str) -> None:
    with pytest.raises(WorkloadError, match="azure-conv"):
        scenario_named(name, data=Path("x"), window_s=1.0, documents=1)


def test_an_unknown_contender_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="stock-tuned"):
        plan_in(tmp_path, contenders=("vllm",))
