"""Claim: the emulator foretells a real server, here the CPU's, from that server's own profile.

One command does all: Echo's server is swept (`echo-sglang profile`), its profile trained, a second
server that uses the profile plays the foundation mix with a step trace, and a third is swept again.
The emulator plays the same requests at the times they were sent, on a device that takes as long as
the two profiles say in the mean, with the scatter around them that the sweeps had. The p99 of a
hundred messages hangs on which iterations the scatter hits: it is drawn DRAWS times, the median is
what is foretold, and the range is shown. The server computes on one core, so that HTTP and clients
do not take turns with it. Two constants are measured too, on neither side of the comparison: the
host's time between two iterations (step trace), and what HTTP, tokenizer and detokenizer add to a
first token (single requests to the idle server).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from echo_sglang.config import EchoConfig
from echo_sglang.errors import WorkloadError
from echo_sglang.sim.processes import run_apart
from echo_sglang.sim.setup import ServerSetup
from eval import contenders
from eval.harness.provenance import collect_provenance
from eval.harness.records import summarise
from eval.harness.report import write_json
from eval.harness.server import REPOSITORY, default_model_path
from eval.validation_replay import (
    SETTLED_S,
    Emulation,
    answers_of,
    counted_from_sending,
    emulate,
    requests_as_sent,
    steady_rates,
    tokens_of,
)
from eval.validation_server import (
    SERVER_LIMITS,
    THREADS,
    Measured,
    Plan,
    make_profile,
    measure,
    scatter,
)

DRAWS = 15
JOBS = 2

TARGETS = {"offline tokens/s": 0.05, "TTFT p50 s": 0.10, "TTFT p99 s": 0.20}
"""Relative errors allowed."""

METRICS = {
    "offline tokens/s": "offline_tokens_per_s",
    "offline requests/s": "offline_per_s",
    "TTFT p50 s": "ttft_p50_s",
    "TTFT p99 s": "ttft_p99_s",
    "TPOT p50 s": "tpot_p50_s",
    "TPOT p99 s": "tpot_p99_s",
}


def run(plan: Plan) -> pd.DataFrame:
    """Everything; returns one row a metric and writes the result folder."""
    plan.results.mkdir(parents=True, exist_ok=True)
    for old in plan.results.glob("*.jsonl*"):
        old.unlink()
    _say("profiling a server")
    make_profile(plan, plan.before)
    _say("playing the mix to a real server")
    workload = plan.workload()
    measured = measure(plan, workload)
    _say("profiling it again")
    make_profile(plan, plan.after)
    _say("emulating it")
    once = Emulation(
        requests=requests_as_sent(workload, measured.record, tokens_of(plan.model_path, workload)),
        setup=setup_of(plan, measured),
        devices=tuple(f"profile:{sweep.profile}" for sweep in (plan.before, plan.after)),
        window_s=plan.window_s,
        ratios=scatter(plan.before) + scatter(plan.after),
        seed=plan.seed,
    )
    draws = [replace(once, seed=DRAWS * plan.seed + draw) for draw in range(DRAWS)]
    emulated = list(run_apart(emulate, draws, jobs=JOBS))
    real = summarise(counted_from_sending(measured.record), contenders.SLO) | steady_rates(
        answers_of(measured.record), plan.window_s
    )
    table = compare(real, emulated, measured.edge_s)
    write_json(
        plan.results / "validation-cpu.json",
        {
            "provenance": collect_provenance(
                model_path=plan.model_path, pythons={"echo": plan.python}
            ),
            "seed": plan.seed,
            "window_s": plan.window_s,
            "sweep_s": plan.sweep_s,
            "threads": plan.threads,
            "server_flags": plan.server_flags,
            "host_s": measured.host_s,
            "edge_s": measured.edge_s,
            "table": json.loads(table.to_json(orient="records")),
            "measured": measured.record.to_json(),
            "emulated": emulated,
        },
    )
    (plan.results / "table.txt").write_text(text(table) + "\n", "utf-8")
    return table


def setup_of(plan: Plan, measured: Measured) -> ServerSetup:
    """The server that was measured."""
    limits = measured.limits
    echo = EchoConfig(
        slo_ttft_ms=contenders.SLO.ttft_s * 1e3,
        slo_tpot_ms=contenders.SLO.tpot_s * 1e3,
        profile=str(plan.before.profile),
        profile_force=True,
    )
    return ServerSetup(
        echo=echo,
        kv_tokens=limits["kv_tokens"],
        context_tokens=limits["context_tokens"],
        max_running=limits["rows"],
        chunk_tokens=limits["chunk_tokens"],
        mixed=True,
        overlap=False,
        host_s=measured.host_s,
    )


def compare(
    real: dict[str, Any], emulated: Sequence[dict[str, Any]], edge_s: float
) -> pd.DataFrame:
    """One row a metric: the real figure, the median of the emulated ones and their range, the
    relative error of the median and what is allowed."""
    rows = []
    for name, key in METRICS.items():
        edge = edge_s if key.startswith("ttft") else 0.0
        draws = [draw[key] + edge for draw in emulated]
        foretold = statistics.median(draws)
        error = foretold / real[key] - 1.0
        allowed = TARGETS.get(name)
        rows.append(
            {
                "metric": name,
                "real": real[key],
                "emulated": foretold,
                "least": min(draws),
                "most": max(draws),
                "error": error,
                "allowed": allowed,
                "holds": None if allowed is None else bool(abs(error) <= allowed),
            }
        )
    return pd.DataFrame(rows)


def text(table: pd.DataFrame) -> str:
    """For a terminal."""
    shown = table.assign(
        error=table["error"].map("{:+.1%}".format),
        allowed=table["allowed"].map(lambda v: "" if np.isnan(v) else f"{v:.0%}"),
        holds=table["holds"].map({True: "yes", False: "no", None: ""}),
    )
    return str(shown.to_string(index=False, float_format="{:.3f}".format))


def add_command(commands: Any) -> None:
    """Add `validation-cpu` to the subcommands of an argparse parser."""
    command = commands.add_parser("validation-cpu", help="a CPU server against its own emulation")
    command.add_argument("--sweep-s", type=float, default=120.0, help="seconds each (%(default)s)")
    command.add_argument("--window-s", type=float, default=240.0, help="seconds (%(default)s)")
    command.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    command.add_argument(
        "--threads", type=int, default=THREADS, help="of the server that compute (%(default)s)"
    )
    command.add_argument("--model-path", type=Path, default=default_model_path())
    command.add_argument(
        "--server-flags",
        default=" ".join(SERVER_LIMITS),
        help="further flags of the server (%(default)s)",
    )
    command.add_argument("--name", default="validation-cpu", help="result folder below results/")
    command.set_defaults(execute=main)


def main(arguments: argparse.Namespace) -> None:
    """Run the experiment that the command line asks for and print it. Raises WorkloadError."""
    if arguments.window_s <= SETTLED_S:
        raise WorkloadError(f"--window-s {arguments.window_s:g}: more than {SETTLED_S:g}")
    plan = Plan(
        results=REPOSITORY / "results" / arguments.name,
        model_path=arguments.model_path.expanduser(),
        sweep_s=arguments.sweep_s,
        window_s=arguments.window_s,
        seed=arguments.seed,
        threads=arguments.threads,
        server_flags=tuple(arguments.server_flags.split()),
    )
    print(f"\n{text(run(plan))}\nwritten to {plan.results.relative_to(REPOSITORY)}/")


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)
