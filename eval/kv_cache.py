"""Claim: Echo's cache keeps what offline work will need without costing online conversations.

Evictions compared under the same co-scheduler on an emulated accelerator: `lru` (SGLang's own
cache), `class-lru` (offline KV before online KV) and `value`. Offline: ten questions to each of
900 documents, 3.6 million tokens, nine times the cache. Online: a steady stream of single
questions, or conversations that come back. The bound is what no order and no cache can beat:
every prefix that the finished requests share computed exactly once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from echo_sglang.config import EchoConfig, EvictionPolicy
from echo_sglang.errors import WorkloadError
from echo_sglang.sim.arrivals import PoissonTraffic
from echo_sglang.sim.conversations import Conversations
from echo_sglang.sim.documents import DocumentQuestions
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.processes import execute_all
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.spec import Recipe, RunSpec
from eval.harness.provenance import collect_provenance
from eval.harness.report import write_json
from eval.harness.server import REPOSITORY

SLO = Slo(ttft_s=0.5, tpot_s=0.05)
DEVICE = "A100-80G:Llama-3.1-8B"
QUESTIONS, CHATS = "questions", "conversations"
COLUMNS = {
    "attainment": "attained",
    "ttft_p99_s": "TTFT p99 s",
    "online_hit_rate": "online hit",
    "offline_per_s": "offline/s",
    "offline_hit_rate": "offline hit",
    "optimal_hit_rate": "bound",
    "of_bound": "of bound",
    "recomputed_tokens": "recomputed",
    "decide_p50_ms": "decide ms",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run and where to leave it. jobs: processes at a time."""

    results: Path
    device: str = DEVICE
    online: tuple[str, ...] = (QUESTIONS, CHATS)
    evictions: tuple[EvictionPolicy, ...] = tuple(EvictionPolicy)
    seeds: tuple[int, ...] = (1, 2, 3)
    window_s: float = 300.0
    documents: int = 900
    kv_tokens: int = 400_000
    jobs: int = 1

    def __post_init__(self) -> None:
        for name in self.online:
            if name not in (QUESTIONS, CHATS):
                raise WorkloadError(f"unknown traffic {name!r}; there are {QUESTIONS}, {CHATS}")

    def spec(self, online: str, eviction: EvictionPolicy, seed: int) -> RunSpec:
        """One run."""
        config = EchoConfig(
            slo_ttft_ms=SLO.ttft_s * 1e3, slo_tpot_ms=SLO.tpot_s * 1e3, eviction=eviction.value
        )
        traffic: Recipe = PoissonTraffic(rate_per_s=2.0, window_s=self.window_s)
        if online == CHATS:
            traffic = Conversations(chats_per_s=0.4, window_s=self.window_s)
        return RunSpec(
            device=self.device,
            setup=ServerSetup(echo=config, kv_tokens=self.kv_tokens, mixed=True),
            recipes=(traffic, DocumentQuestions(documents=self.documents)),
            seed=seed,
            window_s=self.window_s,
            slo=SLO,
        )


def run(plan: Plan, execute: Callable[..., Iterable[dict[str, Any]]] = execute_all) -> pd.DataFrame:
    """Run everything, write the result folder, return medians over seeds."""
    keys = [
        (online, eviction, seed)
        for online in plan.online
        for seed in plan.seeds
        for eviction in plan.evictions
    ]
    rows = []
    found = execute([plan.spec(*key) for key in keys], jobs=plan.jobs)
    for (online, eviction, seed), result in zip(keys, found, strict=True):
        summary = result["summary"]
        summary["of_bound"] = summary["offline_hit_rate"] / summary["optimal_hit_rate"]
        rows.append({"online": online, "eviction": eviction.value, "seed": seed} | summary)
        print(f"[{len(rows)}/{len(keys)}] {online} {eviction.value} seed {seed}", flush=True)
    table = pd.DataFrame(rows)
    plan.results.mkdir(parents=True, exist_ok=True)
    table.to_csv(plan.results / "runs.csv", index=False)
    medians = table.groupby(["online", "eviction"], sort=False)[list(COLUMNS)].median()
    medians = medians.reset_index()
    write_json(
        plan.results / "kv-cache.json",
        {
            "provenance": collect_provenance(
                model_path=Path(plan.device), pythons={"emulator": sys.executable}
            )
            | {"hardware": f"emulated {plan.device}", "seeds": list(plan.seeds)},
            "medians": json.loads(medians.to_json(orient="records")),
            "claims": verdict(medians),
        },
    )
    return medians


def verdict(medians: pd.DataFrame) -> dict[str, bool]:
    """What is claimed, and whether it held."""
    at = medians.set_index(["online", "eviction"])
    claims = {}
    for online in medians["online"].unique():
        value = at.loc[(online, EvictionPolicy.VALUE.value)]
        claims[f"{online}: offline hit rate at least 0.90 of the bound"] = value["of_bound"] >= 0.9
        if (online, EvictionPolicy.LRU.value) in at.index:
            lru = at.loc[(online, EvictionPolicy.LRU.value)]
            better = value["online_hit_rate"] >= lru["online_hit_rate"]
            claims[f"{online}: online hit rate not below SGLang's LRU"] = better
    return {name: bool(holds) for name, holds in claims.items()}


def add_command(commands: Any) -> None:
    """Add `kv-cache` to the subcommands of an argparse parser."""
    command = commands.add_parser("kv-cache", help="evictions compared, emulated")
    command.add_argument("--device", default=DEVICE, help="(%(default)s)")
    command.add_argument("--online", default=f"{QUESTIONS},{CHATS}", help="(%(default)s)")
    command.add_argument("--seeds", default="1,2,3", help="comma-separated (%(default)s)")
    command.add_argument("--window-s", type=float, default=300.0, help="seconds (%(default)s)")
    command.add_argument("--documents", type=int, default=900, help="10 questions each")
    command.add_argument("--kv-tokens", type=int, default=400_000, help="(%(default)s)")
    command.add_argument("--jobs", type=int, default=1, help="processes at a time (%(default)s)")
    command.add_argument("--name", default="kv-cache", help="result folder below results/")
    command.set_defaults(execute=main)


def main(arguments: argparse.Namespace) -> None:
    """Run the experiment that the command line asks for and print it."""
    plan = Plan(
        results=REPOSITORY / "results" / arguments.name,
        device=arguments.device,
        online=tuple(arguments.online.split(",")),
        seeds=tuple(int(seed) for seed in arguments.seeds.split(",")),
        window_s=arguments.window_s,
        documents=arguments.documents,
        kv_tokens=arguments.kv_tokens,
        jobs=arguments.jobs,
    )
    medians = run(plan)
    shown = medians.rename(columns=COLUMNS)
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    for claim, holds in verdict(medians).items():
        print(f"{claim}: {'yes' if holds else 'NO'}")
    print(f"written to {plan.results.relative_to(REPOSITORY)}/")
