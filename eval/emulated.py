"""Claim: Echo does several times the offline work of a tuned stock server, online SLOs kept.

On an emulated accelerator (echo_sglang.sim: SGLang's real scheduler, cache and allocators on
virtual time), so that the scale is a GPU's: minutes of traffic, 400,000 KV tokens, thousands
of pooled questions. A cell is one (scenario, contender, order, seed); cells run in processes
of their own, several at a time, and finished ones are kept.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from echo_sglang.config import EchoConfig
from echo_sglang.errors import WorkloadError
from echo_sglang.sim.documents import Order
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.processes import execute_all
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.spec import RunSpec
from eval.emulated_scenarios import NO_OFFLINE, Scenario
from eval.harness.provenance import collect_provenance
from eval.harness.report import write_json

ONLINE_ALONE = "online-alone"
STOCK_PRIORITY = "stock-priority"
STOCK_TUNED = "stock-tuned"
ECHO = "echo"
CONTENDERS = (ONLINE_ALONE, STOCK_PRIORITY, STOCK_TUNED, ECHO)
TUNING_SEED = 1000
ATTAINED_ENOUGH = 0.99
SEARCH_CHUNK_TOKENS = (256, 512, 1024, 2048)
SEARCH_EVICTION = ("lfu", "priority")  # lru, SGLang's default, is in the first round
NO_ORDER = "-"
Execute = Callable[..., Iterable[dict[str, Any]]]
"""Runs specs in order, `jobs` at a time: `execute_all`, or a fake."""

TABLE_COLUMNS = {
    "attainment": "attained",
    "ttft_p50_s": "TTFT p50 s",
    "ttft_p99_s": "TTFT p99 s",
    "tpot_p50_s": "TPOT p50 s",
    "tpot_p99_s": "TPOT p99 s",
    "offline_per_s": "offline/s",
    "offline_tokens_per_s": "tokens/s",
    "share_of_limit": "of limit",
    "offline_hit_rate": "hit",
    "optimal_hit_rate": "best hit",
    "recomputed_tokens": "recomputed",
    "preemptions_per_online": "preempt/online",
    "decide_p50_ms": "decide ms",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run and where to leave it. jobs: processes at a time."""

    results: Path
    device: str
    scenarios: tuple[Scenario, ...]
    contenders: tuple[str, ...] = CONTENDERS
    orders: tuple[Order, ...] = (Order.SHUFFLED, Order.SORTED)
    seeds: tuple[int, ...] = (1,)
    search_window_s: float = 60.0
    kv_tokens: int = 400_000
    slo: Slo = Slo()  # noqa: RUF009  (frozen)
    echo: EchoConfig = EchoConfig()  # noqa: RUF009  (frozen)
    echo_server_args: tuple[tuple[str, Any], ...] = ()
    jobs: int = 1
    fresh: bool = False

    def __post_init__(self) -> None:
        for name in self.contenders:
            if name not in CONTENDERS:
                raise WorkloadError(
                    f"unknown contender {name!r}; there are {', '.join(CONTENDERS)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measurement and all that determines it."""

    scenario: str
    contender: str
    order: str
    seed: int
    spec: RunSpec

    @property
    def file_name(self) -> str:
        """Where its result is kept, below the result folder."""
        order = "none" if self.order == NO_ORDER else self.order
        return f"cells/{self.scenario}.{self.contender}.{order}.{self.seed}.json"

    def label(self) -> dict[str, Any]:
        """The columns that name it in a table."""
        return {
            "scenario": self.scenario,
            "contender": self.contender,
            "order": self.order,
            "seed": self.seed,
        }


def stock_setup(plan: Plan) -> ServerSetup:
    """SGLang with all that it offers for priorities, its chunk size as on a GPU of this size."""
    return ServerSetup(
        kv_tokens=plan.kv_tokens,
        priority=True,
        server_args={"retraction_policy": "priority"},
    )


def echo_setup(plan: Plan) -> ServerSetup:
    """Echo as its launcher starts it, with the SLOs of the plan."""
    config = replace(
        plan.echo, slo_ttft_ms=plan.slo.ttft_s * 1e3, slo_tpot_ms=plan.slo.tpot_s * 1e3
    )
    return ServerSetup(
        echo=config, kv_tokens=plan.kv_tokens, mixed=True, server_args=dict(plan.echo_server_args)
    )


def chunk_setups(plan: Plan) -> dict[str, ServerSetup]:
    """First round of the search for the best stock configuration: chunk size and mixing."""
    base = stock_setup(plan)
    return {
        f"chunk{chunk}-{'mixed' if mixed else 'separate'}": replace(
            base, chunk_tokens=chunk, mixed=mixed
        )
        for chunk in SEARCH_CHUNK_TOKENS
        for mixed in (True, False)
    }


def eviction_setups(name: str, setup: ServerSetup) -> dict[str, ServerSetup]:
    """Second round: the winner of the first, and the same with other evictions."""
    others = {
        f"{name}-{eviction}": replace(
            setup, server_args={**setup.server_args, "radix_eviction_policy": eviction}
        )
        for eviction in SEARCH_EVICTION
    }
    return {name: setup, **others}


def best_setup(summaries: dict[str, dict[str, Any]]) -> str:
    """Of those that attain enough the one of highest offline throughput; else the one of
    highest attainment, and among equals of highest throughput."""
    good = {n: s for n, s in summaries.items() if s["attainment"] >= ATTAINED_ENOUGH}
    if good:
        return max(good, key=lambda name: good[name]["offline_per_s"])
    return max(summaries, key=lambda n: (summaries[n]["attainment"], summaries[n]["offline_per_s"]))


def run(plan: Plan, execute: Execute = execute_all) -> pd.DataFrame:
    """Measure every missing cell, write the result folder, return medians over seeds."""
    if plan.fresh:
        shutil.rmtree(plan.results / "cells", ignore_errors=True)
    cells = [cell for scenario in plan.scenarios for cell in _fixed_cells(plan, scenario)]
    if STOCK_TUNED in plan.contenders:
        for scenario in plan.scenarios:
            for order in _orders(plan, scenario):
                cells += _tuned_cells(plan, scenario, order, execute)
    _measure(plan, cells, execute)
    return report(plan, cells)


def report(plan: Plan, cells: Sequence[Cell]) -> pd.DataFrame:
    """Write table and JSON of `cells`, which are all measured."""
    kept = [_load(plan, cell) for cell in cells]
    table = pd.DataFrame(
        [cell.label() | found["summary"] for cell, found in zip(cells, kept, strict=True) if found]
    )
    table.to_csv(plan.results / "cells.csv", index=False)
    medians = median_table(table)
    (plan.results / "table.txt").write_text(text_table(medians) + "\n", "utf-8")
    write_json(
        plan.results / "emulated.json",
        {
            "provenance": provenance(plan),
            "commits_of_cells": sorted({f["provenance"]["commit"] for f in kept if f}),
            "medians": json.loads(medians.to_json(orient="records")),
            "setups": {cell.file_name: cell.spec.to_json()["setup"] for cell in cells},
        },
    )
    return medians


def median_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row per (scenario, contender, order): medians over seeds."""
    keys = ["scenario", "contender", "order"]
    numbers = [c for c in table.columns if c not in (*keys, "seed", "batches_sha1")]
    groups = table.assign(**table[numbers].astype(float)).groupby(keys, sort=False)
    medians = groups[numbers].median()
    medians["num_seeds"] = groups["seed"].nunique()
    return medians.reset_index()


def text_table(medians: pd.DataFrame) -> str:
    """For a terminal."""
    shown = medians[["scenario", "contender", "order", *TABLE_COLUMNS, "num_seeds"]]
    renamed = shown.rename(columns=TABLE_COLUMNS)
    return str(renamed.to_string(index=False, na_rep="-", float_format=lambda v: f"{v:.3g}"))


def provenance(plan: Plan) -> dict[str, Any]:
    """Where the figures come from: an emulation, by which machine and commit."""
    found = collect_provenance(model_path=Path(plan.device), pythons={"emulator": sys.executable})
    return found | {"hardware": f"emulated {plan.device}", "model": plan.device.split(":")[-1]}


def _orders(plan: Plan, scenario: Scenario) -> list[str]:
    """Work that shares nothing has no order worth comparing."""
    orders = [order.value for order in plan.orders]
    return orders if scenario.has_documents else orders[:1]


def _fixed_cells(plan: Plan, scenario: Scenario) -> list[Cell]:
    cells: list[Cell] = []
    for seed in plan.seeds:
        if ONLINE_ALONE in plan.contenders:
            alone = _cell(plan, scenario, ONLINE_ALONE, NO_ORDER, seed, stock_setup(plan))
            cells.append(alone)
        for order in _orders(plan, scenario):
            if STOCK_PRIORITY in plan.contenders:
                cells.append(_cell(plan, scenario, STOCK_PRIORITY, order, seed, stock_setup(plan)))
            if ECHO in plan.contenders:
                cells.append(_cell(plan, scenario, ECHO, order, seed, echo_setup(plan)))
    return cells


def _tuned_cells(plan: Plan, scenario: Scenario, order: str, execute: Execute) -> list[Cell]:
    name, setup = _best_of(plan, scenario, order, chunk_setups(plan), execute)
    name, setup = _best_of(plan, scenario, order, eviction_setups(name, setup), execute)
    print(f"{scenario.name} {order}: the best stock configuration is {name}")
    return [_cell(plan, scenario, STOCK_TUNED, order, seed, setup) for seed in plan.seeds]


def _best_of(
    plan: Plan, scenario: Scenario, order: str, setups: dict[str, ServerSetup], execute: Execute
) -> tuple[str, ServerSetup]:
    """The best of short runs on a seed that no result uses."""
    short = scenario.cut(plan.search_window_s)
    cells = {
        name: _cell(plan, short, f"search-{name}", order, TUNING_SEED, setup)
        for name, setup in setups.items()
    }
    _measure(plan, list(cells.values()), execute)
    summaries: dict[str, dict[str, Any]] = {}
    for name, cell in cells.items():
        found = _load(plan, cell)
        assert found is not None, cell.file_name
        summaries[name] = found["summary"]
    best = best_setup(summaries)
    return best, setups[best]


def _cell(
    plan: Plan, scenario: Scenario, contender: str, order: str, seed: int, setup: ServerSetup
) -> Cell:
    recipes = scenario.recipes(NO_OFFLINE if order == NO_ORDER else Order(order))
    spec = RunSpec(
        device=plan.device,
        setup=setup,
        recipes=recipes,
        seed=seed,
        window_s=scenario.window_s,
        slo=plan.slo,
    )
    return Cell(scenario=scenario.name, contender=contender, order=order, seed=seed, spec=spec)


def _measure(plan: Plan, cells: Sequence[Cell], execute: Execute) -> None:
    """Run what is missing, `plan.jobs` at a time."""
    missing = [cell for cell in cells if _load(plan, cell) is None]
    source = provenance(plan)
    done = len(cells) - len(missing)
    results = execute([cell.spec for cell in missing], jobs=plan.jobs)
    for cell, result in zip(missing, results, strict=True):
        done += 1
        write_json(plan.results / cell.file_name, result | {"provenance": source})
        print(f"[{done}/{len(cells)}] {cell.file_name}", flush=True)


def _load(plan: Plan, cell: Cell) -> dict[str, Any] | None:
    """The kept result of exactly this spec, or None."""
    path = plan.results / cell.file_name
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found if found["digest"] == cell.spec.digest else None
