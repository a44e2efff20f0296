"""Claim: composed kernel times and a plain scheduler foretell a real GPU server's latencies.

A real run of vLLM 0.19 with Llama-3.1-8B on an RTX 4090 (300 requests of ShareGPT lengths, about
10/s, far more than it can hold) against `eval.vllm_fcfs`: the same scheduling rules, the same
arrivals and lengths, iteration times composed from that GPU's measured kernels. Nothing is fitted
to the run. Beside it what the data's own simulator, LLMServingSim, says of the same run.
SGLang's scheduler would be the wrong one here: it keeps room for answers where vLLM preempts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from echo_sglang.errors import WorkloadError
from eval.gpu_tables import KernelTable
from eval.harness.provenance import collect_provenance
from eval.harness.report import write_json
from eval.harness.server import REPOSITORY
from eval.vllm_fcfs import Request, Settings, simulate

DATA = REPOSITORY.parent / "shared" / "data" / "llmservingsim_measured"
RUN = "RTX4090_Llama-3.1-8B"
KERNELS = "RTX4090_meta-llama_Llama-3.1-8B_bf16_tp1"
QUANTILES = (50, 95, 99)
RESERVED_BLOCKS = 1
"""vLLM keeps one block as the null block."""


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A folder of bench/: its requests, the server's settings, its own simulator's figures."""

    requests: tuple[dict[str, Any], ...]
    settings: Settings
    own_simulator_ms: dict[str, float]

    @classmethod
    def read(cls, folder: Path) -> MeasuredRun:
        """Raises WorkloadError naming a file that is missing or not what it should be."""
        texts = {name: _text(folder / name) for name in ("requests.jsonl", "meta.json")}
        try:
            lines = [json.loads(line) for line in texts["requests.jsonl"].splitlines()]
            requests = tuple(sorted(lines, key=lambda line: line["queued_ts"]))
            settings = _settings(json.loads(texts["meta.json"]))
        except (KeyError, TypeError, ValueError) as error:
            raise WorkloadError(f"{folder.name} is not a measured run: {error!r}") from error
        return cls(requests, settings, own_figures(_text(folder / "summary.txt")))

    def to_simulate(self) -> list[Request]:
        """The same requests at the same times, to be served anew."""
        start_s = self.requests[0]["queued_ts"]
        return [
            Request(
                rid=place,
                arrival_s=request["queued_ts"] - start_s,
                prompt_tokens=request["input_toks"],
                output_tokens=request["output_toks"],
            )
            for place, request in enumerate(self.requests)
        ]

    def ttfts_s(self) -> list[float]:
        """Seconds from the queue to the first token, of every request."""
        return [r["first_token_ts"] - r["queued_ts"] for r in self.requests]

    def tpots_s(self) -> list[float]:
        """Mean seconds per token after the first, of every request that has two."""
        return [
            (r["last_token_ts"] - r["first_token_ts"]) / (r["output_toks"] - 1)
            for r in self.requests
            if r["output_toks"] > 1
        ]


def run(data: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One row per metric and quantile, and what the simulation did."""
    measured = MeasuredRun.read(data / "bench" / RUN)
    kernels = KernelTable(data / "kernel" / KERNELS)
    served = measured.to_simulate()
    iterations = simulate(served, kernels.composed_seconds, measured.settings)
    tpots_s = [r.tpot_s for r in served if r.output_tokens > 1]
    own = measured.own_simulator_ms
    table = pd.concat(
        [
            compared("TTFT", measured.ttfts_s(), [r.ttft_s for r in served], own),
            compared("TPOT", measured.tpots_s(), tpots_s, own),
        ],
        ignore_index=True,
    )
    real_end_s = max(r["last_token_ts"] for r in measured.requests)
    facts = {
        "requests": len(served),
        "iterations": iterations,
        "preemptions": sum(r.preemptions for r in served),
        "simulated_s": max(r.last_s for r in served),
        "measured_s": real_end_s - measured.requests[0]["queued_ts"],
    }
    return table, facts


def compared(
    metric: str, real_s: Sequence[float], simulated_s: Sequence[float], own_ms: dict[str, float]
) -> pd.DataFrame:
    """Quantiles of both in milliseconds, and the relative errors of both simulators."""
    rows = []
    for q in QUANTILES:
        real_ms = 1e3 * float(np.percentile(real_s, q))
        simulated_ms = 1e3 * float(np.percentile(simulated_s, q))
        own = own_ms.get(f"{metric} {'Median' if q == 50 else f'P{q}'}")
        rows.append(
            {
                "metric": f"{metric} p{q}",
                "vLLM ms": real_ms,
                "simulated ms": simulated_ms,
                "error": simulated_ms / real_ms - 1.0,
                "LLMServingSim ms": own,
                "its error": None if own is None else own / real_ms - 1.0,
            }
        )
    return pd.DataFrame(rows)


def own_figures(summary: str) -> dict[str, float]:
    """The "Sim" column of a summary.txt, such as {"TTFT Median": 60578.1}; milliseconds."""
    found = re.findall(r"^(\w+ \w+)\s+[\d.]+\s+([\d.]+)\s+[+-][\d.]+%", summary, re.MULTILINE)
    return {name: float(value) for name, value in found}


def text(table: pd.DataFrame) -> str:
    """For a terminal."""
    shares = {name: table[name].map("{:+.1%}".format) for name in ("error", "its error")}
    return str(table.assign(**shares).to_string(index=False, float_format="{:.1f}".format))


def add_command(commands: Any) -> None:
    """Add `validation` to the subcommands of an argparse parser."""
    command = commands.add_parser("validation", help="a real vLLM run on an RTX 4090, simulated")
    command.add_argument("--data", type=Path, default=DATA, help="folder of bench/ and kernel/")
    command.add_argument("--name", default="validation", help="result folder below results/")
    command.set_defaults(execute=main)


def main(arguments: argparse.Namespace) -> None:
    """Simulate, print the comparison and leave it in the result folder."""
    table, facts = run(arguments.data.expanduser())
    results = REPOSITORY / "results" / arguments.name
    source = collect_provenance(
        model_path=Path("Llama-3.1-8B"), pythons={"simulator": sys.executable}
    )
    write_json(
        results / "validation.json",
        {
            "provenance": source | {"hardware": "RTX 4090, simulated from kernel times"},
            "table": json.loads(table.to_json(orient="records")),
            **facts,
        },
    )
    (results / "table.txt").write_text(text(table) + "\n", "utf-8")
    print(f"\n{text(table)}\n")
    print(", ".join(f"{name} {value:.6g}" for name, value in facts.items()))
    print(f"written to {results.relative_to(REPOSITORY)}/")


def _settings(meta: dict[str, Any]) -> Settings:
    scheduler = meta["resolved_config"]["scheduler_config"]
    if scheduler["policy"] != "fcfs" or not meta["kv_cache"]["enable_prefix_caching"]:
        raise ValueError("only first-come-first-served runs with prefix caching are simulated")
    return Settings(
        blocks=meta["kv_cache"]["num_gpu_blocks"] - RESERVED_BLOCKS,
        block_tokens=meta["kv_cache"]["block_size"],
        budget_tokens=scheduler["max_num_batched_tokens"],
        max_rows=scheduler["max_num_seqs"],
        asynchronous=scheduler["async_scheduling"],
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise WorkloadError(
            f"no {path.name} in {path.parent.name}: {error.strerror}; give the folder that holds "
            "bench/ and kernel/ of LLMServingSim's measurements with --data"
        ) from error
