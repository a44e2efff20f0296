"""Claim: a server that starts knowing nothing predicts its own iterations, and the bound holds.

Echo's server plays the demo mix, half-way the load changes (twice the chat messages, shorter
documents, longer answers), while it writes a step trace. Then the trace goes through the
estimator in order, as the server itself did: every iteration is predicted by what was learned
before it. Counted from the first fit on; iterations in safe mode are told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from echo_sglang.cli.trace_files import load_trace, samples_of
from echo_sglang.domain.batch import StepSample
from echo_sglang.estimate.step_time import StepTimeFitter
from eval import contenders
from eval.harness.client import LoadClient
from eval.harness.provenance import collect_provenance
from eval.harness.report import write_json
from eval.harness.server import ECHO_MODULE, REPOSITORY, Server, ServerSpec, default_model_path
from eval.harness.workload import WorkloadConfig, build_workload, warm_up_workload

COVERAGE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run and where to leave it. half_s: seconds of each of the two loads."""

    results: Path
    model_path: Path
    python: str = sys.executable
    half_s: float = 300.0
    seed: int = 1

    def loads(self) -> tuple[WorkloadConfig, WorkloadConfig]:
        """Before and after the change."""
        before = WorkloadConfig(seed=self.seed, window_s=self.half_s)
        after = WorkloadConfig(
            seed=self.seed + 1,
            window_s=self.half_s,
            online_rate_per_s=2 * before.online_rate_per_s,
            document_words=400,
            offline_tokens_out=48,
        )
        return before, after


def run(plan: Plan) -> pd.DataFrame:
    """Serve, then measure; returns one row a half and regime, and writes the result folder."""
    trace = record(plan)
    halves = np.array_split(np.arange(len(trace)), 2)
    predictions = replay(trace)
    rows = [
        {"half": half} | row
        for half, indices in (("first", halves[0]), ("second", halves[1]), ("both", None))
        for row in errors(predictions if indices is None else predictions.loc[indices])
    ]
    table = pd.DataFrame(rows)
    write_json(
        plan.results / "live-step-times.json",
        {
            "provenance": collect_provenance(
                model_path=plan.model_path, pythons={"echo": plan.python}
            ),
            "seed": plan.seed,
            "half_s": plan.half_s,
            "table": json.loads(table.to_json(orient="records")),
        },
    )
    return table


def record(plan: Plan) -> list[StepSample]:
    """Play both loads on one server and return its iterations in order."""
    plan.results.mkdir(parents=True, exist_ok=True)
    path = plan.results / "steps.jsonl"
    for old in plan.results.glob("steps.jsonl*"):
        old.unlink()
    flags = contenders.echo(("--echo-trace", str(path))).flags
    spec = ServerSpec(
        module=ECHO_MODULE, python=plan.python, model_path=plan.model_path, flags=flags
    )
    with Server(spec, log=plan.results / "server.log") as server:
        client = LoadClient(server.base_url, dialect=contenders.ECHO)
        asyncio.run(client.play(warm_up_workload()))
        for load in plan.loads():
            asyncio.run(client.play(build_workload(load)))
            server.check_alive()
        write_json(plan.results / "status.json", server.get_json("/echo/status"))
    return samples_of(load_trace(path), warm_up=0)


def replay(samples: Sequence[StepSample]) -> pd.DataFrame:
    """Every iteration as the model of its moment saw it; unpredicted ones have NaN."""
    fitter = StepTimeFitter(coverage=COVERAGE)
    rows = []
    for sample in samples:
        model = fitter.model
        predicted = model.predict(sample.shape) if model.trained else math.nan
        upper = model.upper(sample.shape) if model.trained else math.nan
        rows.append((sample.shape.regime.value, sample.seconds, predicted, upper))
        fitter.observe(sample.shape, sample.seconds)
    return pd.DataFrame(rows, columns=["regime", "seconds", "predicted", "upper"])


def errors(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Error quantiles, bias and coverage per regime and over all."""
    known = predictions.dropna()
    groups = [*known.groupby("regime"), ("overall", known)]
    return [
        {
            "regime": name,
            "iterations": len(group),
            "unpredicted": len(predictions) - len(known) if name == "overall" else 0,
            "p50": (ratio := (group["predicted"] / group["seconds"] - 1)).abs().median(),
            "p90": ratio.abs().quantile(0.90),
            "p95": ratio.abs().quantile(0.95),
            "p99": ratio.abs().quantile(0.99),
            "bias": ratio.median(),
            "under": (group["predicted"] < group["seconds"]).mean(),
            "coverage": (group["seconds"] <= group["upper"]).mean(),
        }
        for name, group in groups
    ]


def add_command(commands: Any) -> None:
    """Add `live-step-times` to the subcommands of an argparse parser."""
    command = commands.add_parser("live-step-times", help="a CPU server predicts itself")
    command.add_argument("--half-s", type=float, default=300.0, help="seconds (%(default)s)")
    command.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    command.add_argument("--model-path", type=Path, default=default_model_path())
    command.add_argument("--name", default="live-step-times", help="result folder below results/")
    command.set_defaults(execute=main)


def main(arguments: argparse.Namespace) -> None:
    """Run the experiment that the command line asks for and print it."""
    plan = Plan(
        results=REPOSITORY / "results" / arguments.name,
        model_path=arguments.model_path.expanduser(),
        half_s=arguments.half_s,
        seed=arguments.seed,
    )
    table = run(plan)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"written to {plan.results.relative_to(REPOSITORY)}/")
