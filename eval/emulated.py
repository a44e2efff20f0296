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
from dataclasses import asdict, dataclass
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
from eval import emulated_contenders as contenders
from eval.emulated_contenders import (
    CONTENDERS,
    ONLINE_ALONE,
    SEARCHED,
    STOCK_TUNED,
    chunk_setups,
    echo_setup,
    estimator_setup,
    eviction_setups,
    stock_setup,
    without_cache,
)
from eval.emulated_report import (
    ATTAINED_ENOUGH,
    MEANING,
    median_table,
    plot_scenarios,
    text_table,
    verdict,
)
from eval.emulated_scenarios import NO_OFFLINE, Scenario
from eval.harness.provenance import collect_provenance
from eval.harness.report import write_json

TUNING_SEED = 1000
NO_ORDER = "-"
Execute = Callable[..., Iterable[dict[str, Any]]]
"""Runs specs in order, `jobs` at a time: `execute_all`, or a fake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run and where to leave it. jobs: processes at a time. slo: None takes that of
    each scenario."""

    results: Path
    device: str
    scenarios: tuple[Scenario, ...]
    contenders: tuple[str, ...] = CONTENDERS
    orders: tuple[Order, ...] = (Order.SHUFFLED, Order.SORTED)
    seeds: tuple[int, ...] = (1,)
    search_window_s: float = 60.0
    kv_tokens: int = 400_000
    slo: Slo | None = None
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

    def slo_of(self, scenario: Scenario) -> Slo:
        """What online requests are promised in it."""
        return self.slo or scenario.slo

    def setup(self, contender: str, scenario: Scenario) -> ServerSetup:
        """How a contender's server is set up; those in SEARCHED are searched instead."""
        slo = self.slo_of(scenario)
        match contender:
            case contenders.STOCK_ESTIMATOR:
                return estimator_setup(self.kv_tokens, slo, self.echo.slo_margin)
            case contenders.ECHO_NO_CACHE:
                config = without_cache(self.echo)
                return echo_setup(self.kv_tokens, slo, config, dict(self.echo_server_args))
            case contenders.ECHO:
                return echo_setup(self.kv_tokens, slo, self.echo, dict(self.echo_server_args))
            case _:
                return stock_setup(self.kv_tokens)


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


def best_setup(summaries: dict[str, dict[str, Any]]) -> str:
    """Of those that attain enough the one of highest offline throughput; else the one of
    highest attainment, and among equals of highest throughput."""
    good = {n: s for n, s in summaries.items() if s["attainment"] >= ATTAINED_ENOUGH}
    if good:
        return max(good, key=lambda name: good[name]["offline_per_s"])
    return max(summaries, key=lambda n: (summaries[n]["attainment"], summaries[n]["offline_per_s"]))


def fastest_setup(summaries: dict[str, dict[str, Any]]) -> str:
    """The one of highest offline throughput, whatever online requests attain."""
    return max(summaries, key=lambda name: summaries[name]["offline_per_s"])


def run(plan: Plan, execute: Execute = execute_all) -> pd.DataFrame:
    """Measure every missing cell, write the result folder, return medians over seeds."""
    if plan.fresh:
        shutil.rmtree(plan.results / "cells", ignore_errors=True)
    cells = [cell for scenario in plan.scenarios for cell in _fixed_cells(plan, scenario)]
    _measure(plan, cells, execute)
    searched = [name for name in SEARCHED if name in plan.contenders]
    if searched:
        if cells:
            report(plan, cells)  # the search takes long; what is there can be read meanwhile
        for scenario in plan.scenarios:
            for order in _orders(plan, scenario):
                for name in searched:
                    cells += _tuned_cells(plan, scenario, name, order, execute)
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
    source = provenance(plan)
    write_json(
        plan.results / "emulated.json",
        {
            "provenance": source,
            "commits_of_cells": sorted({f["provenance"]["commit"] for f in kept if f}),
            "slos": {scenario.name: asdict(plan.slo_of(scenario)) for scenario in plan.scenarios},
            "meaning": MEANING,
            "medians": json.loads(medians.to_json(orient="records")),
            "verdict": verdict(medians),
            "setups": {cell.file_name: cell.spec.to_json()["setup"] for cell in cells},
        },
    )
    return medians


def plot(plan: Plan, medians: pd.DataFrame) -> None:
    """Write one picture a scenario beside the table."""
    slos = {scenario.name: plan.slo_of(scenario) for scenario in plan.scenarios}
    source = provenance(plan)
    seeds = ", ".join(map(str, plan.seeds))
    caption = f"{source['hardware']}; commit {source['commit'][:10]}; seeds {seeds}"
    plot_scenarios(medians, plan.results, slos=slos, caption=caption)


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
        for contender in plan.contenders:
            if contender in SEARCHED:
                continue
            orders = [NO_ORDER] if contender == ONLINE_ALONE else _orders(plan, scenario)
            setup = plan.setup(contender, scenario)
            cells += [_cell(plan, scenario, contender, order, seed, setup) for order in orders]
    return cells


def _tuned_cells(
    plan: Plan, scenario: Scenario, contender: str, order: str, execute: Execute
) -> list[Cell]:
    choose = best_setup if contender == STOCK_TUNED else fastest_setup
    setups = chunk_setups(stock_setup(plan.kv_tokens))
    name = choose(_short_runs(plan, scenario, order, setups, execute))
    setups = eviction_setups(name, setups[name])
    name = choose(_short_runs(plan, scenario, order, setups, execute))
    print(f"{scenario.name} {order}: {contender} is {name}")
    return [_cell(plan, scenario, contender, order, seed, setups[name]) for seed in plan.seeds]


def _short_runs(
    plan: Plan, scenario: Scenario, order: str, setups: dict[str, ServerSetup], execute: Execute
) -> dict[str, dict[str, Any]]:
    """Summaries of short runs on a seed that no result uses."""
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
    return summaries


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
        slo=plan.slo_of(scenario),
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
