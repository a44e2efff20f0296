"""Claim: the batch service costs next to nothing, and a killed server soon goes on.

One server that emulates a GPU, real HTTP, SQLite on a local disk. Measured:

    accept      50,000 lines uploaded and validated, large ones and small ones: lines per second
                of wall time and of CPU time of the HTTP process, and its extra memory
    overhead    the same requests through a batch, and sent directly as flex requests by a client
                that keeps as many under way: time from the first byte sent to the last answer.
                The batch's time includes upload, validation and the writing of its files
    restart     all processes killed in the middle of a batch and started again: seconds from
                the engine's being ready to the first new result
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from echo_sglang.service.database import SQLITE_NAME
from eval.harness.batches import (
    MODEL_NAME,
    BatchClient,
    BatchRunError,
    ProcessCost,
    Questions,
    ask_directly,
    write_lines,
    write_questions,
)
from eval.harness.provenance import collect_provenance
from eval.harness.report import write_json
from eval.harness.server import ECHO_MODULE, REPOSITORY, Server, ServerSpec, default_model_path

LINE_BYTES = {"large": 3_990, "small": 400}
"""50,000 of them: 199.5 MB, just below what may be uploaded, and 20 MB."""

LEAST_LINES_PER_S = 20_000.0
MOST_OVERHEAD = 0.05
MOST_RESUME_S = 5.0
_POLL_S = 0.02
_KILL_AFTER_SHARE = 0.1
PARTS = ("accept", "overhead", "restart")
NUMBERS = ("lines", "requests", "prompt_words", "output_tokens", "in_flight", "pairs", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run and where to leave it. in_flight: batch lines, or direct requests, at once."""

    results: Path
    model_path: Path
    device: str = "A100-80G:Llama-3.1-8B"
    parts: tuple[str, ...] = PARTS
    lines: int = 50_000
    requests: int = 1_000
    prompt_words: int = 300
    output_tokens: int = 128
    in_flight: int = 512
    pairs: int = 3
    seed: int = 1

    def questions(self, offset: int) -> Questions:
        """The requests of one run; another offset gives others."""
        return Questions(
            count=self.requests,
            prompt_words=self.prompt_words,
            output_tokens=self.output_tokens,
            seed=1_000 * self.seed + offset,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """One file's way in. cpu_s: of the HTTP process, client and engine not counted."""

    lines: int
    size_bytes: int
    upload_s: float
    upload_cpu_s: float
    validate_s: float
    validate_cpu_s: float
    extra_rss_bytes: int

    def row(self) -> dict[str, float]:
        """The figures that are reported: lines per second, megabytes."""
        cpu_s = self.upload_cpu_s + self.validate_cpu_s
        return {
            "megabytes": self.size_bytes / 1e6,
            "validated_lines_per_s": self.lines / self.validate_s,
            "validated_lines_per_cpu_s": self.lines / self.validate_cpu_s,
            "accepted_lines_per_s": self.lines / (self.upload_s + self.validate_s),
            "accepted_lines_per_cpu_s": self.lines / cpu_s,
            "extra_rss_megabytes": self.extra_rss_bytes / 1e6,
        }


def overhead_of(direct_s: Sequence[float], batch_s: Sequence[float]) -> float:
    """How much longer a batch takes than the same requests sent directly: 0.05 is 5 %.

    The median over pairs, so that one disturbed run does not decide.
    """
    pairs = zip(direct_s, batch_s, strict=True)
    return statistics.median(batch / direct for direct, batch in pairs) - 1


def targets(found: Mapping[str, Any]) -> dict[str, bool]:
    """Which targets were met, of the parts that were measured."""
    met = {}
    for name, row in found.get("accept", {}).items():
        met[f"{name} lines validated per s"] = row["validated_lines_per_s"] >= LEAST_LINES_PER_S
    if "overhead" in found:
        met["overhead"] = found["overhead"]["overhead"] <= MOST_OVERHEAD
    if "restart" in found:
        met["resumed in time"] = found["restart"]["resumed_after_s"] < MOST_RESUME_S
    return met


def run(plan: Plan) -> dict[str, Any]:
    """Measure the parts asked for; writes `batches.json` after each, and returns it all."""
    provenance = collect_provenance(
        model_path=plan.model_path, pythons={"echo": sys.executable}
    ) | {"emulated": plan.device, "load_at_start": psutil.getloadavg()}
    found: dict[str, Any] = {}
    measures = {"accept": accept, "overhead": overhead, "restart": restart}
    for part in plan.parts:
        with tempfile.TemporaryDirectory(prefix="echo-batches-") as folder:
            found[part] = measures[part](plan, Path(folder))
        settings = asdict(plan) | {"results": plan.results.name, "model_path": MODEL_NAME}
        ended = provenance | {"load_at_end": psutil.getloadavg()}
        write_json(
            plan.results / "batches.json",
            {"provenance": ended, "plan": settings, "found": found, "met": targets(found)},
        )
    return found


@contextmanager
def served(plan: Plan, folder: Path, name: str) -> Iterator[Server]:
    """An emulated server that keeps its batches in `folder`."""
    spec = ServerSpec(
        module=ECHO_MODULE,
        model_path=plan.model_path,
        flags=(
            *("--echo-emulate", plan.device),
            *("--echo-data-dir", str(folder / "data")),
            *("--echo-batch-in-flight", str(plan.in_flight)),
        ),
    )
    with Server(spec, log=plan.results / f"{name}.log", poll_s=_POLL_S) as server:
        yield server


def accept(plan: Plan, folder: Path) -> dict[str, Any]:
    """Upload and validate a file of large and one of small lines."""
    found = {}
    with served(plan, folder, "accept") as server:
        client = BatchClient(server.base_url)
        for name, line_bytes in LINE_BYTES.items():
            path = folder / f"{name}.jsonl"
            write_lines(path, count=plan.lines, line_bytes=line_bytes, seed=plan.seed)
            accepted = _accepted(plan, client, server.pid, path)
            found[name] = asdict(accepted) | accepted.row()
    return found


def _accepted(plan: Plan, client: BatchClient, pid: int, path: Path) -> Accepted:
    cost = ProcessCost(pid)
    started = time.monotonic()
    file_id = client.upload(path)
    uploaded, uploaded_cpu_s = time.monotonic(), cost.cpu_s
    batch_id = client.create(file_id)
    batch = client.wait(batch_id, lambda batch: batch["status"] != "validating", poll_s=_POLL_S)
    validated, validated_cpu_s = time.monotonic(), cost.cpu_s
    extra_rss_bytes = cost.extra_rss_bytes
    if batch["request_counts"]["total"] != plan.lines:
        raise BatchRunError(f"{plan.lines} lines were sent: {batch}")
    client.cancel(batch_id)
    client.wait(batch_id, lambda batch: batch["status"] == "cancelled")
    return Accepted(
        lines=plan.lines,
        size_bytes=path.stat().st_size,
        upload_s=uploaded - started,
        upload_cpu_s=uploaded_cpu_s,
        validate_s=validated - uploaded,
        validate_cpu_s=validated_cpu_s - uploaded_cpu_s,
        extra_rss_bytes=extra_rss_bytes,
    )


def overhead(plan: Plan, folder: Path) -> dict[str, Any]:
    """The same requests both ways, `pairs` times, each way first in turn; seconds."""
    seconds: dict[str, list[float]] = {"direct": [], "batch": []}
    with served(plan, folder, "overhead") as server:
        _direct_s(server, plan.questions(0), plan.in_flight)  # warm-up, of other requests
        for pair in range(plan.pairs):
            questions = plan.questions(pair + 1)
            path = folder / f"{pair}.jsonl"
            write_questions(questions, path)
            for way in ("direct", "batch") if pair % 2 == 0 else ("batch", "direct"):
                server.flush_cache()
                seconds[way].append(
                    _direct_s(server, questions, plan.in_flight)
                    if way == "direct"
                    else _batch_s(server, path, plan.requests)
                )
    tokens = plan.requests * plan.output_tokens
    return {
        "direct_s": seconds["direct"],
        "batch_s": seconds["batch"],
        "direct_tokens_per_s": tokens / statistics.median(seconds["direct"]),
        "batch_tokens_per_s": tokens / statistics.median(seconds["batch"]),
        "overhead": overhead_of(seconds["direct"], seconds["batch"]),
    }


def _direct_s(server: Server, questions: Questions, concurrency: int) -> float:
    bodies = list(questions.bodies())
    started = time.monotonic()
    tokens = asyncio.run(ask_directly(server.base_url, bodies, concurrency))
    taken_s = time.monotonic() - started
    if tokens != questions.count * questions.output_tokens:
        raise BatchRunError(f"{tokens} tokens came of {questions}")
    return taken_s


def _batch_s(server: Server, path: Path, count: int) -> float:
    client = BatchClient(server.base_url)
    started = time.monotonic()
    batch_id = client.create(client.upload(path))
    batch = client.wait(batch_id, lambda batch: batch["status"] == "completed", poll_s=0.1)
    taken_s = time.monotonic() - started
    if batch["request_counts"]["completed"] != count:
        raise BatchRunError(f"{count} lines were sent: {batch}")
    return taken_s


def restart(plan: Plan, folder: Path) -> dict[str, Any]:
    """Kill the server in the middle of a batch, start it again, wait for what comes next."""
    path = folder / "questions.jsonl"
    write_questions(plan.questions(0), path)
    with served(plan, folder, "killed") as server:
        client = BatchClient(server.base_url)
        batch_id = client.create(client.upload(path))
        enough = _KILL_AFTER_SHARE * plan.requests
        client.wait(batch_id, lambda batch: batch["request_counts"]["completed"] >= enough)
        server.kill()
    kept = _completed(folder / "data" / SQLITE_NAME, batch_id)
    started = time.monotonic()
    with served(plan, folder, "restarted") as server:
        ready = time.monotonic()
        client = BatchClient(server.base_url)
        client.wait(batch_id, lambda batch: batch["request_counts"]["completed"] > kept)
        resumed = time.monotonic()
        batch = client.wait(batch_id, lambda batch: batch["status"] == "completed", poll_s=0.1)
    if batch["request_counts"]["completed"] != plan.requests:
        raise BatchRunError(f"{plan.requests} lines were sent: {batch}")
    return {
        "kept_at_kill": kept,
        "started_in_s": ready - started,
        "resumed_after_s": resumed - ready,
        "rest_done_after_s": time.monotonic() - ready,
    }


def _completed(database: Path, batch_id: str) -> int:
    with sqlite3.connect(database) as connection:
        row = connection.execute("SELECT completed FROM batches WHERE id = ?", (batch_id,))
        return int(row.fetchone()[0])


def add_command(commands: Any) -> None:
    """Add `batches` to the subcommands of an argparse parser."""
    command = commands.add_parser("batches", help="what the batch service costs")
    command.add_argument("--parts", default=",".join(PARTS), help="comma-separated (%(default)s)")
    usual = Plan(results=Path(), model_path=Path())
    command.add_argument("--device", default=usual.device, help="HARDWARE:MODEL (%(default)s)")
    for name in NUMBERS:
        flag = f"--{name.replace('_', '-')}"
        command.add_argument(flag, type=int, default=getattr(usual, name), help="(%(default)s)")
    command.add_argument("--model-path", type=Path, default=default_model_path())
    command.add_argument("--name", default="batches", help="result folder below results/")
    command.set_defaults(execute=main)


def plan_from(arguments: argparse.Namespace) -> Plan:
    """The plan that the command line asks for. Raises ValueError for what cannot be run."""
    parts = tuple(arguments.parts.split(","))
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"--parts {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    numbers = {name: getattr(arguments, name) for name in NUMBERS}
    if wrong := [name for name, value in numbers.items() if value < 1]:
        raise ValueError(f"--{wrong[0].replace('_', '-')} must be 1 or more")
    return Plan(
        results=REPOSITORY / "results" / arguments.name,
        model_path=arguments.model_path.expanduser(),
        device=arguments.device,
        parts=parts,
        **numbers,
    )


def main(arguments: argparse.Namespace) -> None:
    """Run the experiment that the command line asks for and print it."""
    plan = plan_from(arguments)
    found = run(plan)
    for part, figures in found.items():
        rows = figures if part == "accept" else {part: figures}
        for name, row in rows.items():
            print(f"{part} {name}" if part == "accept" else part)
            for figure, value in row.items():
                print(f"    {figure:28}{_shown(value)}")
    for target, met in targets(found).items():
        print(f"{target}: {'met' if met else 'MISSED'}")
    print(f"written to {plan.results.relative_to(REPOSITORY)}/")


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{each:.2f}" for each in value)
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
