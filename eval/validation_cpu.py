"""Claim: the emulator foretells a real server, here the CPU's, from that server's own profile.

One command does all: Echo's server is swept (`echo-sglang profile`), its profile trained, a second
server that uses the profile plays the foundation mix with a step trace, and the emulator plays the
same requests at the times they were sent, on a device that takes as long as the profile says. Three
constants come from measurement too, none from what is compared: the host's time between two
iterations (step trace), and what HTTP, tokenizer and detokenizer add to a first token (single
requests to the idle server).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from echo_sglang.cli.trace_files import load_trace
from echo_sglang.config import EchoConfig
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.estimate.step_trace import StepTrace
from echo_sglang.sim.catalog import device_from
from echo_sglang.sim.metrics import Slo, summarise_requests
from echo_sglang.sim.processes import run_apart
from echo_sglang.sim.run import run as run_emulated
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.workload import Request, Segment, merge
from eval import contenders
from eval.harness.client import LoadClient
from eval.harness.provenance import collect_provenance
from eval.harness.records import RunRecord, summarise
from eval.harness.report import write_json
from eval.harness.server import (
    ECHO_MODULE,
    REPOSITORY,
    Server,
    ServerError,
    ServerSpec,
    default_model_path,
)
from eval.harness.workload import Workload, WorkloadConfig, build_workload, warm_up_workload

BUSY_GAP_S = 0.05
"""A longer pause between two iterations is a wait for requests, not the host's work."""

EDGE_PROBES = 12
GRACE_S = 30.0
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run and where to leave it. sweep_s: seconds of profiling."""

    results: Path
    model_path: Path
    python: str = sys.executable
    sweep_s: float = 150.0
    window_s: float = 120.0
    seed: int = 1

    @property
    def profile(self) -> Path:
        """The profile of the server."""
        return self.results / "profile.json"

    def workload(self) -> Workload:
        """The foundation mix."""
        return build_workload(WorkloadConfig(seed=self.seed, window_s=self.window_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The real run. host_s: between two iterations. edge_s: added to a first token.
    limits: of the server, tokens and rows."""

    record: RunRecord
    host_s: float
    edge_s: float
    limits: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """One emulated run, to be sent to its process."""

    requests: tuple[Request, ...]
    setup: ServerSetup
    device: str
    window_s: float


def run(plan: Plan) -> pd.DataFrame:
    """Everything; returns one row a metric and writes the result folder."""
    plan.results.mkdir(parents=True, exist_ok=True)
    for old in plan.results.glob("*.jsonl*"):
        old.unlink()
    _say("profiling a server")
    make_profile(plan)
    _say("playing the mix to a real server")
    workload = plan.workload()
    measured = measure(plan, workload)
    _say("emulating it")
    emulation = Emulation(
        requests=requests_as_sent(workload, measured.record, tokens_of(plan.model_path, workload)),
        setup=setup_of(plan, measured),
        device=f"profile:{plan.profile}",
        window_s=plan.window_s,
    )
    emulated = next(run_apart(emulate, [emulation]))
    table = compare(summarise(measured.record, contenders.SLO), emulated, measured.edge_s)
    write_json(
        plan.results / "validation-cpu.json",
        {
            "provenance": collect_provenance(
                model_path=plan.model_path, pythons={"echo": plan.python}
            ),
            "seed": plan.seed,
            "window_s": plan.window_s,
            "sweep_s": plan.sweep_s,
            "host_s": measured.host_s,
            "edge_s": measured.edge_s,
            "table": json.loads(table.to_json(orient="records")),
            "measured": measured.record.to_json(),
            "emulated": emulated,
        },
    )
    (plan.results / "table.txt").write_text(text(table) + "\n", "utf-8")
    return table


# ------------------------------------------------------------------ the real server


def make_profile(plan: Plan) -> None:
    """Sweep a server and train on its trace. Raises ServerError if a command fails."""
    trace = plan.results / "sweep.jsonl"
    with Server(_spec(plan, trace), log=plan.results / "sweep.log") as server:
        _cli(plan, "profile", server.base_url, "--seconds", f"{plan.sweep_s:g}", "--json")
    _cli(plan, "train", str(trace), "-o", str(plan.profile), "--seed", str(plan.seed))


def measure(plan: Plan, workload: Workload) -> Measured:
    """Play `workload` to a server that has the profile."""
    trace = plan.results / "run.jsonl"
    spec = _spec(plan, trace, "--echo-profile", str(plan.profile))
    with Server(spec, log=plan.results / "run.log") as server:
        client = LoadClient(server.base_url, dialect=contenders.ECHO)
        asyncio.run(client.play(warm_up_workload()))
        latencies_s = [_first_token_s(client, number) for number in range(EDGE_PROBES)]
        server.flush_cache()
        record = asyncio.run(client.play(workload, grace_s=GRACE_S))
        server.check_alive()
    steps = load_trace(trace)
    return Measured(
        record=record,
        host_s=host_seconds(steps),
        edge_s=edge_seconds(latencies_s, steps, skipped=len(warm_up_workload().online)),
        limits=dict(steps.header.limits),
    )


def host_seconds(steps: StepTrace) -> float:
    """Median of the time between two iterations that nobody had to be waited for in between."""
    pairs = zip(steps.records, steps.records[1:], strict=False)
    gaps_s = [after.ended_s - before.ended_s - after.step_s for before, after in pairs]
    busy_s = [gap_s for gap_s in gaps_s if 0.0 <= gap_s < BUSY_GAP_S]
    return statistics.median(busy_s) if busy_s else 0.0


def edge_seconds(latencies_s: Sequence[float], steps: StepTrace, *, skipped: int) -> float:
    """Median of what a client saw beyond the one iteration of each single request.

    skipped: prompts that the server computed before the first of them.
    """
    computed_s = [r.step_s for r in steps.records if r.sums.tokens][skipped:]
    beyond_s = [
        latency_s - step_s for latency_s, step_s in zip(latencies_s, computed_s, strict=False)
    ]
    return max(statistics.median(beyond_s), 0.0)


def _first_token_s(client: LoadClient, number: int) -> float:
    """TTFT of one message, of a text of its own, to an idle server."""
    config = WorkloadConfig(
        seed=5000 + number,
        window_s=0.1,
        online_rate_per_s=0.0,
        burst_size=1,
        burst_every_s=0.02,
        online_tokens_out=1,
        num_documents=0,
    )
    several = build_workload(config)
    one = replace(several, online=several.online[:1])
    record = asyncio.run(client.play(one, grace_s=GRACE_S))
    answer = record.online[0]
    if answer.first_s is None:
        raise ServerError(f"an idle server did not answer: {answer.error}")
    return answer.first_s - answer.sent_s


def _spec(plan: Plan, trace: Path, *flags: str) -> ServerSpec:
    return ServerSpec(
        module=ECHO_MODULE,
        python=plan.python,
        model_path=plan.model_path,
        flags=contenders.echo(("--echo-trace", str(trace), *flags)).flags,
    )


def _cli(plan: Plan, *arguments: str) -> None:
    command = [plan.python, "-m", "echo_sglang.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if done.returncode:
        raise ServerError(f"echo-sglang {arguments[0]} failed:\n{done.stdout}{done.stderr}"[-2000:])


# ------------------------------------------------------------------- its emulation


def tokens_of(model_path: Path, workload: Workload) -> dict[str, list[int]]:
    """By message: the token ids that the server makes of it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model_path))
    return {
        request.message: tokenizer.apply_chat_template(
            [{"role": "user", "content": request.message}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for request in (*workload.online, *workload.offline)
    }


def requests_as_sent(
    workload: Workload, record: RunRecord, tokens: dict[str, list[int]]
) -> tuple[Request, ...]:
    """The workload's requests at the times at which they were sent, sharing what they shared.

    Prompts become segments: what all share (the chat template's beginning), what the questions
    of a document share beyond that, and the rest.
    """
    head = shared_tokens(list(tokens.values()))
    sent_s = {answer.index: answer.sent_s for answer in record.online}
    online = [
        Request(
            rid=f"on-{request.index}",
            arrival_s=sent_s[request.index],
            prompt=_segments([head, len(tokens[request.message])], [0, 1 + request.index]),
            output_tokens=request.tokens_out,
            ignores_eos=True,
        )
        for request in workload.online
    ]
    of_document: dict[int, list[list[int]]] = {}
    for request in workload.offline:
        of_document.setdefault(request.document, []).append(tokens[request.message])
    shared = {document: shared_tokens(prompts) for document, prompts in of_document.items()}
    offline = [
        Request(
            rid=f"off-{request.index}",
            arrival_s=0.0,
            prompt=_segments(
                [head, shared[request.document], len(tokens[request.message])],
                [0, 10_000 + request.document, 20_000 + request.index],
            ),
            output_tokens=request.tokens_out,
            service_class=ServiceClass.OFFLINE,
            ignores_eos=True,
        )
        for request in workload.offline
    ]
    return merge(online, offline).requests


def shared_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with alike, at most all but the last of the shortest."""
    most = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    return next(
        (place for place in range(most) if any(p[place] != first[place] for p in prompts)), most
    )


def _segments(ends: Sequence[int], seeds: Sequence[int]) -> tuple[Segment, ...]:
    """Segments that end after so many tokens of the prompt; empty ones are left out."""
    starts = [0, *ends[:-1]]
    return tuple(
        Segment(seed, end - start)
        for start, end, seed in zip(starts, ends, seeds, strict=True)
        if end > start
    )


def setup_of(plan: Plan, measured: Measured) -> ServerSetup:
    """The server that was measured."""
    limits = measured.limits
    echo = EchoConfig(
        slo_ttft_ms=contenders.SLO.ttft_s * 1e3,
        slo_tpot_ms=contenders.SLO.tpot_s * 1e3,
        profile=str(plan.profile),
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


def emulate(given: Emulation) -> dict[str, Any]:
    """In a process of its own: what the emulated clients saw."""
    result = run_emulated(
        merge(given.requests),
        device_from(given.device),
        given.setup,
        window_s=given.window_s,
        grace_s=GRACE_S,
    )
    slo = Slo(ttft_s=contenders.SLO.ttft_s, tpot_s=contenders.SLO.tpot_s)
    records = result.emulator.records.values()
    return summarise_requests(records, slo, given.window_s)


def compare(real: dict[str, Any], emulated: dict[str, Any], edge_s: float) -> pd.DataFrame:
    """One row a metric: both figures, the relative error and what is allowed."""
    rows = []
    for name, key in METRICS.items():
        foretold = emulated[key] + (edge_s if key.startswith("ttft") else 0.0)
        error = foretold / real[key] - 1.0
        allowed = TARGETS.get(name)
        rows.append(
            {
                "metric": name,
                "real": real[key],
                "emulated": foretold,
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
    command.add_argument("--sweep-s", type=float, default=150.0, help="seconds (%(default)s)")
    command.add_argument("--window-s", type=float, default=120.0, help="seconds (%(default)s)")
    command.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    command.add_argument("--model-path", type=Path, default=default_model_path())
    command.add_argument("--name", default="validation-cpu", help="result folder below results/")
    command.set_defaults(execute=main)


def main(arguments: argparse.Namespace) -> None:
    """Run the experiment that the command line asks for and print it."""
    plan = Plan(
        results=REPOSITORY / "results" / arguments.name,
        model_path=arguments.model_path.expanduser(),
        sweep_s=arguments.sweep_s,
        window_s=arguments.window_s,
        seed=arguments.seed,
    )
    print(f"\n{text(run(plan))}\nwritten to {plan.results.relative_to(REPOSITORY)}/")


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)
