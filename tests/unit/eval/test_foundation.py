from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from echo_sglang.errors import WorkloadError
from eval import foundation
from eval.commands import plan_from
from eval.contenders import CONFIGS, echo, search_candidates, stock_priority
from eval.foundation import Cell, Plan, best_candidate, cells_of, load_cell, verdict
from eval.harness.report import medians, text_table
from eval.harness.workload import Order
from eval.run import build_parser, main

PROVENANCE = {
    "hardware": "CPU",
    "cpu": "some",
    "cores": 2,
    "model": "small",
    "environments": {"stock": {"sglang": "0.5.23", "torch": "2"}},
    "commit": "abc",
    "dirty": False,
}


def plan_at(results: Path) -> Plan:
    return Plan(
        results=results,
        model_path=Path("model"),
        configs=CONFIGS,
        orders=(Order.SHUFFLED, Order.SORTED),
        seeds=(1, 2, 3),
        window_s=90.0,
        search_window_s=45.0,
    )


def row(config: str, order: str, seed: int, *, attainment: float, offline: float) -> dict[str, Any]:
    return {
        "config": config,
        "order": order,
        "seed": seed,
        "attainment": attainment,
        "ttft_p50_s": 0.2,
        "ttft_p99_s": 1.0,
        "tpot_p50_s": 0.1,
        "tpot_p99_s": 0.2,
        "offline_per_s": offline,
        "offline_tokens_per_s": 1000 * offline,
        "kv_hit_rate": 0.5,
        "pool_dry": False,
    }


def measured() -> pd.DataFrame:
    rows = [row("online-alone", "-", seed, attainment=1.0, offline=0.0) for seed in (1, 2, 3)]
    for seed, offline in ((1, 0.3), (2, 0.5), (3, 9.0)):
        rows.append(row("stock-fcfs", "shuffled", seed, attainment=0.1, offline=2.0))
        rows.append(row("stock-tuned", "shuffled", seed, attainment=0.5, offline=offline))
        rows.append(row("echo", "shuffled", seed, attainment=0.98, offline=1.5))
    return pd.DataFrame(rows)


def keep_cell(plan: Plan, cell: Cell, summary: dict[str, Any]) -> None:
    path = plan.results / cell.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        "cell": {k: getattr(cell, k) for k in ("config", "order", "seed", "window_s")},
        "summary": summary,
        "flags": ["--x"],
        "provenance": PROVENANCE,
    }
    path.write_text(json.dumps(kept))


def test_the_table_holds_medians_over_seeds() -> None:
    table = medians(measured()).set_index("config")
    assert table.loc["stock-tuned", "offline_per_s"] == 0.5  # of 0.3, 0.5, 9.0
    assert table.loc["stock-tuned", "num_seeds"] == 3


def test_a_table_of_online_alone_only_keeps_its_empty_offline_columns() -> None:
    only = row("online-alone", "-", 1, attainment=1.0, offline=0.0) | {"offline_per_s": None}
    table = medians(pd.DataFrame([only]))
    assert table["offline_per_s"].isna().all()
    assert "offline/s" in text_table(table)


def test_one_dry_pool_marks_the_whole_row() -> None:
    cells = measured()
    cells.loc[cells.index[-1], "pool_dry"] = True
    table = medians(cells).set_index("config")
    assert table["pool_dry"].to_dict()["echo"]
    assert not table["pool_dry"].to_dict()["stock-tuned"]


def test_the_verdict_compares_echo_with_the_best_attaining_stock_not_the_fastest() -> None:
    found = verdict(medians(measured()))
    assert found["best_attaining_stock"] == "stock-tuned"
    assert found["attainment_lost_points"] == pytest.approx(2.0)
    assert found["offline_ratio"] == pytest.approx(3.0)  # 1.5 / 0.5


def test_there_is_no_verdict_while_a_side_is_missing() -> None:
    cells = measured()
    assert verdict(medians(cells[cells["config"] != "echo"])) == {}


def test_the_best_candidate_attains_most_and_breaks_ties_by_throughput() -> None:
    summaries = {
        "fast": {"attainment": 0.4, "offline_per_s": 2.0},
        "slow": {"attainment": 0.5, "offline_per_s": 0.4},
        "better": {"attainment": 0.5, "offline_per_s": 0.6},
    }
    assert best_candidate(summaries) == "better"


def test_online_alone_has_a_cell_per_seed_and_the_others_one_per_order_and_seed(
    tmp_path: Path,
) -> None:
    plan = plan_at(tmp_path)
    assert len(cells_of(plan, "online-alone")) == 3
    assert len(cells_of(plan, "echo")) == 6


def test_all_configurations_play_the_same_workload(tmp_path: Path) -> None:
    plan = replace(plan_at(tmp_path), seeds=(1,), orders=(Order.SHUFFLED,))
    played = {name: cells_of(plan, name)[0].workload() for name in CONFIGS}
    assert len({played[name].sha256 for name in CONFIGS if name != "online-alone"}) == 1
    assert played["online-alone"].online == played["echo"].online


def test_a_kept_cell_is_found_again_and_one_of_another_window_is_refused(tmp_path: Path) -> None:
    plan = plan_at(tmp_path)
    cell = cells_of(plan, "echo")[0]
    assert load_cell(plan, cell) is None
    keep_cell(plan, cell, {})
    assert load_cell(plan, cell) is not None
    with pytest.raises(WorkloadError, match="--fresh"):
        load_cell(plan, replace(cell, window_s=60.0))


def test_the_report_is_made_of_the_kept_cells(tmp_path: Path) -> None:
    plan = plan_at(tmp_path)
    for kept in measured().to_dict("records"):
        cell = Cell(config=kept["config"], order=kept["order"], seed=kept["seed"], window_s=90.0)
        keep_cell(
            plan, cell, {k: v for k, v in kept.items() if k not in ("config", "order", "seed")}
        )
    table = foundation.report(plan, PROVENANCE)
    assert list(table["config"]) == ["online-alone", "stock-fcfs", "stock-tuned", "echo"]
    result = json.loads((tmp_path / "foundation.json").read_text())
    assert result["provenance"]["hardware"] == "CPU"
    assert result["verdict"]["offline_ratio"] == pytest.approx(3.0)
    assert len(pd.read_csv(tmp_path / "cells.csv")) == 12
    assert "CPU some, 2 cores" in (tmp_path / "table.txt").read_text()
    assert (tmp_path / "foundation.png").stat().st_size > 10_000


def test_the_text_table_has_a_line_per_row_and_the_terms_of_the_field() -> None:
    text = text_table(medians(measured()))
    assert len(text.splitlines()) == 5
    assert "TTFT p99 s" in text and "KV hit" in text


def test_search_candidates_differ_and_stock_priority_sets_its_three_flags() -> None:
    flags = [candidate.flags for candidate in search_candidates()]
    assert len(set(flags)) == len(flags) == 8
    assert all("--enable-mixed-chunk" in f and "lru" in f for f in flags)
    priority = stock_priority().flags
    for flag in ("--enable-priority-scheduling", "--retraction-policy", "--radix-eviction-policy"):
        assert flag in priority


def test_echo_serves_with_the_same_kv_tokens_and_the_slos_of_the_experiment() -> None:
    flags = echo(("--more",)).flags
    assert flags[flags.index("--max-total-tokens") + 1] == "10000"
    assert flags[flags.index("--slo-ttft-ms") + 1] == "2000"
    assert flags[flags.index("--slo-tpot-ms") + 1] == "300"
    assert flags[-1] == "--more"


def test_the_command_line_makes_the_plan() -> None:
    line = ["foundation", "--configs", "echo", "--seeds", "4,5", "--orders", "sorted"]
    plan = plan_from(build_parser().parse_args([*line, "--window-s", "60"]))
    assert (plan.configs, plan.seeds, plan.window_s) == (("echo",), (4, 5), 60.0)
    assert plan.orders == (Order.SORTED,)


def test_quick_is_one_seed_one_order_and_its_own_folder() -> None:
    plan = plan_from(build_parser().parse_args(["foundation", "--quick"]))
    assert (plan.seeds, plan.orders) == ((1,), (Order.SHUFFLED,))
    assert plan.results.name == "foundation-quick"


def test_an_unknown_configuration_ends_with_the_names_that_exist(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["foundation", "--configs", "vllm"]) == 1
    assert "unknown configuration 'vllm'; there are online-alone" in capsys.readouterr().err
