"""Claim: `--echo-impact-percent` keeps online requests within x % and harvests what that leaves.

On an emulated accelerator, at each rate of Poisson traffic and each seed, three runs of the same
server with the same arrivals: online alone, bounded by impact, and bounded by SLOs only. The
quantiles compared are over the requests of all seeds: at low rates one window has few. Beside
the harvest stands the computed bound of what the impact leaves (`impact_bound.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from echo_sglang.config import EchoConfig
from echo_sglang.errors import WorkloadError
from echo_sglang.policy.impact import TPOT_IMPACT_SHARE
from echo_sglang.sim.arrivals import PoissonTraffic
from echo_sglang.sim.catalog import device_from
from echo_sglang.sim.documents import DocumentQuestions
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.processes import run_apart
from echo_sglang.sim.run import run as run_emulated
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.spec import Recipe, RunSpec
from eval.harness.provenance import collect_provenance
from eval.harness.report import write_json
from eval.harness.server import REPOSITORY
from eval.impact_bound import HarvestBound, OnlineAlone, harvest_bound

SLO = Slo(ttft_s=0.5, tpot_s=0.05)
DEVICE = "A100-80G:Llama-3.1-8B-flat"
ALONE, BOUNDED, UNRESTRICTED = "alone", "bounded", "unrestricted"
MODES = (ALONE, BOUNDED, UNRESTRICTED)
Run = dict[str, Any]
"""summary; ttfts_s and tpots_s of online requests; prompt_tokens and answer_tokens of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run and where to leave it. rates: (online requests per second, window in
    seconds). jobs: processes at a time."""

    results: Path
    device: str = DEVICE
    percent: float = 5.0
    rates: tuple[tuple[float, float], ...] = ((2.0, 120.0), (0.2, 300.0))
    seeds: tuple[int, ...] = (1, 2, 3)
    documents: int = 900
    kv_tokens: int = 400_000
    jobs: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.percent <= 100.0:
            raise WorkloadError(f"an impact of {self.percent} %: say more than 0, at most 100")

    @property
    def work(self) -> DocumentQuestions:
        """The offline work beside the traffic."""
        return DocumentQuestions(documents=self.documents)

    def spec(self, mode: str, rate: float, window_s: float, seed: int) -> RunSpec:
        """One run. Online alone runs on the server that is bounded by impact."""
        config = EchoConfig(
            slo_ttft_ms=SLO.ttft_s * 1e3,
            slo_tpot_ms=SLO.tpot_s * 1e3,
            impact_percent=0.0 if mode == UNRESTRICTED else self.percent,
        )
        traffic: Recipe = PoissonTraffic(rate_per_s=rate, window_s=window_s)
        return RunSpec(
            device=self.device,
            setup=ServerSetup(echo=config, kv_tokens=self.kv_tokens, mixed=True),
            recipes=(traffic,) if mode == ALONE else (traffic, self.work),
            seed=seed,
            window_s=window_s,
            slo=SLO,
        )


def measure(values: dict[str, Any]) -> Run:
    """Run one spec, given as JSON values, in this process."""
    spec = RunSpec.from_json(values)
    result = run_emulated(
        spec.workload(), device_from(spec.device), spec.setup, window_s=spec.window_s
    )
    online = [r for r in result.emulator.records.values() if not r.request.is_offline]
    return {
        "summary": result.summary(spec.slo).to_json(),
        "ttfts_s": [r.ttft_s for r in online if r.ttft_s is not None],
        "tpots_s": [r.tpot_s for r in online if r.tpot_s is not None],
        "prompt_tokens": sum(r.request.prompt_tokens for r in online),
        "answer_tokens": sum(r.received for r in online),
    }


def run(plan: Plan, execute: Callable[..., Iterable[Run]] = run_apart) -> pd.DataFrame:
    """Run everything, write the result folder, return a row for each rate: all seeds."""
    runs = _measured(plan, execute)
    each = [
        {"rate": rate, "seeds": str(seed)} | compared(plan, rate, window_s, runs, (seed,))
        for rate, window_s in plan.rates
        for seed in plan.seeds
    ]
    every = [
        {"rate": rate, "seeds": "all"} | compared(plan, rate, window_s, runs, plan.seeds)
        for rate, window_s in plan.rates
    ]
    table = pd.DataFrame([*each, *every])
    plan.results.mkdir(parents=True, exist_ok=True)
    table.to_csv(plan.results / "impact.csv", index=False)
    write_json(
        plan.results / "impact.json",
        {
            "provenance": _provenance(plan),
            "percent": plan.percent,
            "bounds": {f"{rate:g}": asdict(_bound(plan, rate, w, runs)) for rate, w in plan.rates},
            "rows": table.to_dict(orient="records"),
            "claims": verdict(table, plan.percent),
        },
    )
    return table


def _measured(
    plan: Plan, execute: Callable[..., Iterable[Run]]
) -> dict[tuple[str, float, int], Run]:
    """Every run, by mode, rate and seed. Those that are done are kept and not run again, as
    long as the same spec was run by the same commit."""
    commit = _provenance(plan)["commit"]
    specs = {
        (mode, rate, seed): plan.spec(mode, rate, window_s, seed)
        for rate, window_s in plan.rates
        for seed in plan.seeds
        for mode in MODES
    }
    paths = {
        key: plan.results / "runs" / f"{key[0]}.{key[1]:g}.{key[2]}.{spec.digest}.json"
        for key, spec in specs.items()
    }
    kept = {
        key: json.loads(path.read_text("utf-8")) for key, path in paths.items() if path.is_file()
    }
    runs = {key: run for key, run in kept.items() if run["commit"] == commit}
    missing = [key for key in specs if key not in runs]
    found = execute(measure, [specs[key].to_json() for key in missing], jobs=plan.jobs)
    for key, run in zip(missing, found, strict=True):
        runs[key] = run | {"commit": commit}
        write_json(paths[key], runs[key])
        mode, rate, seed = key
        print(f"[{len(runs)}/{len(specs)}] {mode} {rate:g}/s seed {seed}", flush=True)
    return runs


def _provenance(plan: Plan) -> dict[str, Any]:
    found = collect_provenance(model_path=Path(plan.device), pythons={"emulator": sys.executable})
    return found | {"hardware": f"emulated {plan.device}", "seeds": list(plan.seeds)}


def compared(
    plan: Plan,
    rate: float,
    window_s: float,
    runs: Mapping[tuple[str, float, int], Run],
    seeds: Sequence[int],
) -> dict[str, float]:
    """The runs of some seeds in figures: milliseconds, percent, questions per second."""
    row: dict[str, float] = {}
    for name in ("ttft", "tpot"):
        for q in (50, 99):
            alone, bounded = (
                float(
                    np.percentile(
                        np.concatenate([runs[m, rate, s][f"{name}s_s"] for s in seeds]), q
                    )
                )
                for m in (ALONE, BOUNDED)
            )
            row[f"{name}_p{q}_ms"] = 1e3 * alone
            row[f"{name}_p{q}_percent"] = 100.0 * (bounded / alone - 1.0)
    harvest, unrestricted = (
        float(np.mean([runs[m, rate, s]["summary"]["offline_per_s"] for s in seeds]))
        for m in (BOUNDED, UNRESTRICTED)
    )
    bound = _bound(plan, rate, window_s, runs, seeds).per_s
    return row | {
        "harvest_per_s": harvest,
        "bound_per_s": bound,
        "of_bound": harvest / bound,
        "unrestricted_per_s": unrestricted,
        "of_unrestricted": harvest / unrestricted,
    }


def _bound(
    plan: Plan,
    rate: float,
    window_s: float,
    runs: Mapping[tuple[str, float, int], Run],
    seeds: Sequence[int] | None = None,
) -> HarvestBound:
    """What the impact leaves beside the traffic as it ran alone."""
    alone = [runs[ALONE, rate, seed] for seed in seeds or plan.seeds]
    requests = sum(r["summary"]["online_requests"] for r in alone)
    load = OnlineAlone(
        per_s=requests / (window_s * len(alone)),
        prompt_tokens=sum(r["prompt_tokens"] for r in alone) / requests,
        answer_tokens=sum(r["answer_tokens"] for r in alone) / requests,
        busy_share=float(np.mean([r["summary"]["device_busy"] for r in alone])),
        ttft_s=float(np.percentile(np.concatenate([r["ttfts_s"] for r in alone]), 50)),
        tpot_s=float(np.percentile(np.concatenate([r["tpots_s"] for r in alone]), 50)),
    )
    ttft = plan.percent / 100.0
    return harvest_bound(
        device_from(plan.device), load, plan.work, ttft=ttft, tpot=TPOT_IMPACT_SHARE * ttft
    )


def verdict(table: pd.DataFrame, percent: float) -> dict[str, bool]:
    """What is claimed of all seeds together, and whether it held."""
    claims: dict[str, bool] = {}
    for row in table[table["seeds"] == "all"].to_dict(orient="records"):
        at = f"{row['rate']:g}/s: "
        for name, allowed in (("ttft", percent), ("tpot", TPOT_IMPACT_SHARE * percent)):
            for q in (50, 99):
                claim = f"{at}{name.upper()} p{q} at most {allowed:g} % later"
                claims[claim] = row[f"{name}_p{q}_percent"] <= allowed
        if row["rate"] >= 1.0:
            claims[f"{at}at least 0.80 of the bound"] = row["of_bound"] >= 0.8
        else:
            claims[f"{at}at least 0.35 of the unrestricted harvest"] = (
                row["of_unrestricted"] >= 0.35
            )
    return claims


def add_command(commands: Any) -> None:
    """Add `impact` to the subcommands of an argparse parser."""
    command = commands.add_parser("impact", help="harvest within x %% of online alone, emulated")
    command.add_argument("--device", default=DEVICE, help="(%(default)s)")
    command.add_argument("--percent", type=float, default=5.0, help="(%(default)s)")
    command.add_argument(
        "--rates", default="2:120,0.2:300", help="PER_S:WINDOW_S,... (%(default)s)"
    )
    command.add_argument("--seeds", default="1,2,3", help="comma-separated (%(default)s)")
    command.add_argument("--documents", type=int, default=900, help="10 questions each")
    command.add_argument("--kv-tokens", type=int, default=400_000, help="(%(default)s)")
    command.add_argument("--jobs", type=int, default=1, help="processes at a time (%(default)s)")
    command.add_argument("--name", default="impact", help="result folder below results/")
    command.set_defaults(execute=main)


def main(arguments: argparse.Namespace) -> None:
    """Run the experiment that the command line asks for and print it."""
    plan = Plan(
        results=REPOSITORY / "results" / arguments.name,
        device=arguments.device,
        percent=arguments.percent,
        rates=rates_from(arguments.rates),
        seeds=tuple(int(seed) for seed in arguments.seeds.split(",")),
        documents=arguments.documents,
        kv_tokens=arguments.kv_tokens,
        jobs=arguments.jobs,
    )
    table = run(plan)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    for claim, holds in verdict(table, plan.percent).items():
        print(f"{claim}: {'yes' if holds else 'NO'}")
    print(f"written to {plan.results.relative_to(REPOSITORY)}/")


def rates_from(text: str) -> tuple[tuple[float, float], ...]:
    """Such as "2:120,0.2:300". Raises WorkloadError for anything else."""
    try:
        pairs = [pair.split(":") for pair in text.split(",")]
        rates = tuple((float(rate), float(window_s)) for rate, window_s in pairs)
    except ValueError as error:
        raise WorkloadError(f"--rates {text!r}: say PER_S:WINDOW_S,...") from error
    if any(rate <= 0.0 or window_s <= 0.0 for rate, window_s in rates):
        raise WorkloadError(f"--rates {text!r}: rates and windows must be above 0")
    return rates
