"""Claim: Echo keeps the online SLOs of an idle server and does far more offline work beside them.

The same requests, at the same times, go to: the server with online traffic alone, stock SGLang
first come first served, stock with its priority flags, the best-attaining stock configuration
that a search finds, and Echo; the offline questions handed in shuffled and sorted by document.
A cell is one (configuration, order, seed); finished cells are kept, so a run can be resumed.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from echo_sglang.errors import WorkloadError
from eval import contenders
from eval.contenders import (
    CONFIGS,
    ECHO_CONFIG,
    KV_TOKENS,
    ONLINE_ALONE,
    SLO,
    STOCK_CONFIGS,
    STOCK_TUNED,
    Contender,
)
from eval.harness.client import LoadClient
from eval.harness.provenance import collect_provenance
from eval.harness.records import RunRecord, summarise
from eval.harness.report import caption_of, medians, plot_comparison, text_table, write_json
from eval.harness.server import ECHO_MODULE, STOCK_MODULE, Server, ServerError, ServerSpec
from eval.harness.workload import (
    Order,
    Workload,
    WorkloadConfig,
    build_workload,
    warm_up_workload,
)

TUNING_SEED = 1000
NO_ORDER = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run and where to leave it. search_window_s: window of one search candidate."""

    results: Path
    model_path: Path
    configs: tuple[str, ...]
    orders: tuple[Order, ...]
    seeds: tuple[int, ...]
    window_s: float
    search_window_s: float
    stock_python: str = sys.executable
    echo_python: str = sys.executable
    extra_echo_flags: tuple[str, ...] = ()
    platform: str = "echo_cpu"
    fresh: bool = False

    def __post_init__(self) -> None:
        for name in self.configs:
            if name not in CONFIGS:
                allowed = ", ".join(CONFIGS)
                raise WorkloadError(f"unknown configuration {name!r}; there are {allowed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measurement: a configuration, an order of the offline questions, a seed, a window."""

    config: str
    order: str
    seed: int
    window_s: float

    @property
    def file_name(self) -> str:
        """Where its result is kept, below the result folder."""
        order = "none" if self.order == NO_ORDER else self.order
        return f"cells/{self.config}.{order}.{self.seed}.json"

    def workload(self) -> Workload:
        """What is played: the same for every configuration, but for the offline part."""
        order = Order.SHUFFLED if self.order == NO_ORDER else Order(self.order)
        config = WorkloadConfig(seed=self.seed, order=order, window_s=self.window_s)
        workload = build_workload(config)
        return workload.without_offline() if self.order == NO_ORDER else workload


def cells_of(plan: Plan, config: str) -> list[Cell]:
    """The cells of a configuration; without offline work there is no order."""
    orders = [NO_ORDER] if config == ONLINE_ALONE else [order.value for order in plan.orders]
    return [
        Cell(config=config, order=order, seed=seed, window_s=plan.window_s)
        for order in orders
        for seed in plan.seeds
    ]


def run(plan: Plan) -> pd.DataFrame:
    """Measure every missing cell, write the result folder, return the medians.

    A server that fails costs its own cells only: the others are measured, then ServerError is
    raised with the first failure. Raises WorkloadError if kept cells are of another window.
    """
    if plan.fresh:
        shutil.rmtree(plan.results / "cells", ignore_errors=True)
    pythons = {"stock": plan.stock_python, "echo": plan.echo_python}
    provenance = collect_provenance(model_path=plan.model_path, pythons=pythons)
    for cell in cells_of(plan, STOCK_TUNED):
        print(f"workload {cell.order}, seed {cell.seed}: {cell.workload().sha256}")
    failures: list[ServerError] = []
    for config in plan.configs:
        try:
            for contender, cells in _contenders_of(plan, config, provenance):
                _measure_missing(plan, contender, cells, provenance)
        except ServerError as error:
            print(f"{config} failed: {error}", file=sys.stderr)
            failures.append(error)
    table = report(plan, provenance)
    if failures:
        raise failures[0]
    return table


def report(plan: Plan, provenance: dict[str, Any]) -> pd.DataFrame:
    """Write tables, plot and JSON from the cells in the result folder; return the medians."""
    wanted = [cell for config in CONFIGS for cell in cells_of(plan, config)]
    found = [kept for kept in (load_cell(plan, cell) for cell in wanted) if kept]
    if not found:
        raise ServerError("nothing was measured, see the messages above")
    cells = pd.DataFrame([kept["cell"] | kept["summary"] for kept in found])
    table = medians(cells)
    cells.to_csv(plan.results / "cells.csv", index=False)
    table.to_csv(plan.results / "table.csv", index=False)
    caption = caption_of(provenance, seeds=plan.seeds, window_s=plan.window_s)
    plot_comparison(table, plan.results / "foundation.png", slo=SLO, caption=caption)
    (plan.results / "table.txt").write_text(f"{caption}\n\n{text_table(table)}\n", "utf-8")
    result = {
        "provenance": provenance,
        "commits_of_cells": sorted({kept["provenance"]["commit"] for kept in found}),
        "seeds": plan.seeds,
        "window_s": plan.window_s,
        "slo": asdict(SLO),
        "kv_tokens": KV_TOKENS,
        "flags": {f"{kept['cell']['config']} {kept['cell']['order']}": kept["flags"]
                  for kept in found},
        "medians": json.loads(table.to_json(orient="records")),
        "verdict": verdict(table),
    }  # fmt: skip
    write_json(plan.results / "foundation.json", result)
    return table


def verdict(table: pd.DataFrame) -> dict[str, float | str]:
    """The two figures of the claim, from medians: points lost and throughput ratio, shuffled.

    The rival is the stock configuration of the highest attainment. Empty while cells are missing.
    """
    rows = {(row["config"], row["order"]): row for row in table.to_dict("records")}
    shuffled = Order.SHUFFLED.value
    stock = [rows[config, shuffled] for config in STOCK_CONFIGS if (config, shuffled) in rows]
    alone, echo = rows.get((ONLINE_ALONE, NO_ORDER)), rows.get((ECHO_CONFIG, shuffled))
    if not stock or alone is None or echo is None:
        return {}
    rival = max(stock, key=lambda row: (row["attainment"], row["offline_per_s"]))
    return {
        "best_attaining_stock": str(rival["config"]),
        "attainment_lost_points": 100 * float(alone["attainment"] - echo["attainment"]),
        "offline_ratio": float(echo["offline_per_s"] / rival["offline_per_s"]),
    }


def best_candidate(summaries: dict[str, dict[str, Any]]) -> str:
    """The name of highest attainment; among equals, of highest offline throughput."""
    return max(
        summaries,
        key=lambda name: (summaries[name]["attainment"], summaries[name]["offline_per_s"]),
    )


def load_cell(plan: Plan, cell: Cell) -> dict[str, Any] | None:
    """The finished cell, or None. Raises WorkloadError if it was measured on another window."""
    path = plan.results / cell.file_name
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if found["cell"]["window_s"] != cell.window_s:
        raise WorkloadError(
            f"{cell.file_name} holds a window of {found['cell']['window_s']} s, {cell.window_s} s "
            "was asked for; use --fresh or another --name"
        )
    return found


def _contenders_of(
    plan: Plan, config: str, provenance: dict[str, Any]
) -> list[tuple[Contender, list[Cell]]]:
    """The servers of a configuration and the cells that each of them measures.

    There is more than one only if the search finds different flags for the two orders.
    """
    cells = cells_of(plan, config)
    if config == ECHO_CONFIG:
        return [(contenders.echo(plan.extra_echo_flags), cells)]
    if config != STOCK_TUNED:
        make = {
            ONLINE_ALONE: contenders.online_alone,
            contenders.STOCK_FCFS: contenders.stock_fcfs,
            contenders.STOCK_PRIORITY: contenders.stock_priority,
        }[config]
        return [(make(), cells)]
    found: dict[tuple[str, ...], list[Cell]] = {}
    if any(load_cell(plan, cell) is None for cell in cells):
        for order, flags in _search(plan, provenance).items():
            found.setdefault(flags, []).extend(cell for cell in cells if cell.order == order)
    return [(contenders.stock_tuned(flags), cells) for flags, cells in found.items()]


def _search(plan: Plan, provenance: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """The flags of the best candidate for each order, on a seed that is not measured later."""
    orders = [order.value for order in plan.orders]
    candidates = {candidate.name: candidate for candidate in contenders.search_candidates()}
    summaries: dict[str, dict[str, dict[str, Any]]] = {order: {} for order in orders}
    for name, candidate in candidates.items():
        cells = [
            Cell(config=name, order=order, seed=TUNING_SEED, window_s=plan.search_window_s)
            for order in orders
        ]
        _measure_missing(plan, candidate, cells, provenance)
        for cell in cells:
            kept = load_cell(plan, cell)
            if kept is not None:
                summaries[cell.order][name] = kept["summary"]
    best = {order: best_candidate(by_name) for order, by_name in summaries.items()}
    print(f"best-attaining stock by order: {best}")
    return {order: candidates[name].flags for order, name in best.items()}


def _measure_missing(
    plan: Plan, contender: Contender, cells: Sequence[Cell], provenance: dict[str, Any]
) -> None:
    """Start the server if a cell is missing, warm it up with five messages, measure."""
    missing = [cell for cell in cells if load_cell(plan, cell) is None]
    if not missing:
        return
    spec = ServerSpec(
        module=ECHO_MODULE if contender.is_echo else STOCK_MODULE,
        python=plan.echo_python if contender.is_echo else plan.stock_python,
        model_path=plan.model_path,
        flags=contender.flags,
        platform=plan.platform,
    )
    print(f"starting {contender.name}: {' '.join(contender.flags)}", flush=True)
    with Server(spec, log=plan.results / "logs" / f"{contender.name}.log") as server:
        client = LoadClient(server.base_url, dialect=contender.dialect)
        _play(server, client, warm_up_workload())
        for cell in missing:
            record = _play(server, client, cell.workload())
            summary = summarise(record, SLO)
            print(f"{cell.config} {cell.order} seed {cell.seed}: {_line(summary)}", flush=True)
            write_json(plan.results / cell.file_name, {
                "cell": asdict(cell),
                "flags": contender.flags,
                "provenance": provenance,
                "summary": summary,
                "echo_status": server.get_json("/echo/status"),
                "run": record.to_json(),
            })  # fmt: skip


def _play(server: Server, client: LoadClient, workload: Workload) -> RunRecord:
    server.flush_cache()
    record = asyncio.run(client.play(workload))
    server.check_alive()
    if record.refused:
        raise ServerError(f"every chat message failed, {record.refused}; {server.log_tail()}")
    return record


def _line(summary: dict[str, Any]) -> str:
    shown = ("attainment", "ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "offline_per_s", "kv_hit_rate")
    parts = [f"{name} {summary[name]:.3f}" for name in shown if summary[name] is not None]
    return ", ".join(parts) + (", pool ran dry" if summary["pool_dry"] else "")
