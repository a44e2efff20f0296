"""Claim: thousands of offline requests sent at once do not keep online ones waiting.

A server at the speed of an emulated accelerator, over HTTP: two chat messages a second, and at
one moment a client in another process sends all its offline questions. TTFT of the messages sent
before, within a few seconds from that moment, and later; for Echo, and for stock SGLang with its
priority flags and chunks as small as its best-tuned configuration's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from echo_sglang.errors import WorkloadError
from eval.harness.client import ECHO, PRIORITY, Dialect, LoadClient
from eval.harness.provenance import collect_provenance
from eval.harness.records import OnlineRecord
from eval.harness.report import write_json
from eval.harness.server import ECHO_MODULE, REPOSITORY, Server, ServerSpec, default_model_path
from eval.harness.workload import QUESTIONS, Workload, WorkloadConfig, build_workload

DEVICE = "A100-80G:Llama-3.1-8B"
WINDOW_S = 60.0
FLOOD_AT_S = 20.0
DURING_S = 5.0
DOCUMENTS = 40
"""This many of 900 words every Python installation has."""

SETTLED_S = 3.0
"""Messages sent before are not counted: the first ones of a server are slow."""

SLO_FLAGS = ("--slo-ttft-ms", "500", "--slo-tpot-ms", "50")
SERVERS: dict[str, tuple[tuple[str, ...], Dialect]] = {
    "echo": (SLO_FLAGS, ECHO),
    "stock": (
        (
            *("--echo-off", "--enable-priority-scheduling", "--retraction-policy", "priority"),
            *("--enable-mixed-chunk", "--chunked-prefill-size", "256"),
        ),
        PRIORITY,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run and where to leave it. floods: offline requests sent at once."""

    results: Path
    model_path: Path
    servers: tuple[str, ...] = tuple(SERVERS)
    floods: tuple[int, ...] = (500, 2000)
    seed: int = 1
    python: str = sys.executable

    def __post_init__(self) -> None:
        for name in self.servers:
            if name not in SERVERS:
                raise WorkloadError(f"unknown server {name!r}; there are {', '.join(SERVERS)}")
        if not self.floods or min(self.floods) < 1:
            raise WorkloadError(f"floods of {self.floods} requests: say one or more, each above 0")

    def online(self) -> Workload:
        """Chat messages for the whole window, no bursts."""
        return build_workload(
            WorkloadConfig(
                seed=self.seed,
                window_s=WINDOW_S,
                online_rate_per_s=2.0,
                burst_every_s=10 * WINDOW_S,
                num_documents=0,
            )
        )

    def flood(self, number: int) -> Workload:
        """Offline questions until the end of the window, nothing else. They come again, each with
        a number of its own, where there are not documents enough."""
        config = WorkloadConfig(
            seed=self.seed,
            window_s=WINDOW_S - FLOOD_AT_S,
            online_rate_per_s=0.0,
            burst_every_s=10 * WINDOW_S,
            num_documents=min(DOCUMENTS, math.ceil(number / len(QUESTIONS))),
        )
        questions = build_workload(config).offline
        offline = tuple(
            replace(request, index=index, message=f"{request.message} ({index})")
            for index, request in enumerate(islice(cycle(questions), number))
        )
        return Workload(config=config, online=(), offline=offline)


def run(plan: Plan) -> pd.DataFrame:
    """Every server with every flood; returns a row for each part of each run."""
    plan.results.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in plan.servers:
        flags, dialect = SERVERS[name]
        for number in plan.floods:
            spec = ServerSpec(
                module=ECHO_MODULE,
                python=plan.python,
                model_path=plan.model_path,
                flags=("--echo-emulate", DEVICE, *flags),
            )
            with Server(spec, log=plan.results / f"{name}.{number}.log") as server:
                records = play(plan, number, server.base_url, dialect)
                server.check_alive()
            rows += [{"server": name, "flood": number} | row for row in parts(records)]
            print(f"{name}, {number} at once: played", flush=True)
    table = pd.DataFrame(rows)
    source = collect_provenance(model_path=plan.model_path, pythons={"echo": plan.python})
    write_json(
        plan.results / "flood.json",
        {
            "provenance": source | {"hardware": f"{source['hardware']}, emulated {DEVICE}"},
            "seed": plan.seed,
            "servers": {name: asdict(SERVERS[name][1]) for name in plan.servers},
            "table": json.loads(table.to_json(orient="records")),
        },
    )
    return table


def play(plan: Plan, number: int, base_url: str, dialect: Dialect) -> Sequence[OnlineRecord]:
    """The online messages of one run; the flood comes from a process of its own, whose work
    delays nobody here."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    sender = context.Process(
        target=send_flood, args=(plan.flood(number), base_url, dialect, ready), daemon=True
    )
    sender.start()
    if not ready.wait(60.0):
        raise WorkloadError("the process that sends the flood did not start within a minute")
    ready.clear()
    try:
        client = LoadClient(base_url, dialect=dialect)
        return asyncio.run(_play(client, plan.online(), ready))
    finally:
        sender.kill()
        sender.join()


async def _play(client: LoadClient, online: Workload, go: Any) -> Sequence[OnlineRecord]:
    asyncio.get_running_loop().call_later(FLOOD_AT_S, go.set)
    return (await client.play(online)).online


def send_flood(flood: Workload, base_url: str, dialect: Dialect, event: Any) -> None:
    """In a process of its own: say that it is ready, wait for the word, send everything."""
    event.set()
    while event.is_set():
        time.sleep(0.01)
    event.wait()
    asyncio.run(LoadClient(base_url, dialect=dialect).play(flood))


def parts(records: Sequence[OnlineRecord]) -> list[dict[str, Any]]:
    """TTFT of the messages before the flood, while it comes in, and after: milliseconds."""
    bounds = {
        "before": (SETTLED_S, FLOOD_AT_S),
        "while it comes in": (FLOOD_AT_S, FLOOD_AT_S + DURING_S),
        "after": (FLOOD_AT_S + DURING_S, WINDOW_S),
    }
    rows = []
    for part, (start_s, end_s) in bounds.items():
        sent = [record for record in records if start_s <= record.due_s < end_s]
        ttfts_ms = [1e3 * record.ttft_s for record in sent]
        rows.append(
            {
                "part": part,
                "messages": len(sent),
                "errors": sum(record.error is not None for record in sent),
                "ttft_p50_ms": float(np.percentile(ttfts_ms, 50)) if sent else None,
                "ttft_max_ms": max(ttfts_ms, default=None),
            }
        )
    return rows


def add_command(commands: Any) -> None:
    """Add `flood` to the subcommands of an argparse parser."""
    command = commands.add_parser("flood", help="offline requests by the thousand at one moment")
    command.add_argument("--servers", default=",".join(SERVERS), help="of these (%(default)s)")
    command.add_argument("--floods", default="500,2000", help="requests (%(default)s)")
    command.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    command.add_argument("--model-path", type=Path, default=default_model_path())
    command.add_argument("--name", default="flood", help="result folder below results/")
    command.set_defaults(execute=main)


def main(arguments: argparse.Namespace) -> None:
    """Run the experiment that the command line asks for and print it. Raises WorkloadError."""
    plan = Plan(
        results=REPOSITORY / "results" / arguments.name,
        model_path=arguments.model_path.expanduser(),
        servers=tuple(arguments.servers.split(",")),
        floods=tuple(int(number) for number in arguments.floods.split(",")),
        seed=arguments.seed,
    )
    table = run(plan)
    print(table.to_string(index=False, float_format="{:.0f}".format))
    print(f"written to {plan.results.relative_to(REPOSITORY)}/")
