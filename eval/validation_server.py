"""The real server of `validation-cpu`: profiled, then measured while it plays a workload."""

from __future__ import annotations

import asyncio
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from echo_sglang.adapter.profiles import load_profile
from echo_sglang.cli.trace_files import load_trace, samples_of
from echo_sglang.cli.training import WARM_UP_ITERATIONS
from echo_sglang.estimate.step_trace import StepTrace
from eval import contenders
from eval.harness.client import LoadClient
from eval.harness.corpus import read_documents
from eval.harness.records import RunRecord
from eval.harness.server import ECHO_MODULE, REPOSITORY, Server, ServerError, ServerSpec
from eval.harness.workload import (
    Workload,
    WorkloadConfig,
    build_workload,
    lone_message_workload,
    warm_up_workload,
)

RUN = "run.jsonl"

BUSY_GAP_S = 0.05
"""A longer pause between two iterations is a wait for requests, not the host's work."""

SERVER_LIMITS = ("--max-running-requests", "32", "--chunked-prefill-size", "512")
"""What the mix makes use of: a sweep goes as far as its server allows, and rows by the hundred or
chunks of seconds would take the time that the batches of the mix are learned in."""

THREADS = 1
"""That compute: HTTP, tokenizer and the load client have a core of their own, as they have beside a
GPU. Where they take turns with the model, iterations are longer in a run than in a sweep."""

DOCUMENTS_A_MINUTE = 24
"""More than is answered: a pool that runs dry would make two different runs of one."""

AGE_S = 45.0
"""How long a server has played another mix before it is swept: in a pool that was used, the KV of a
prompt lies scattered, and a CPU reads it more slowly than that of a fresh server."""

AGE_SEED = 500

EDGE_PROBES = 13
"""The last is not counted: its iterations cannot be told from those of the run."""

GRACE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """One sweep: its step trace and the profile trained on it."""

    trace: Path
    profile: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run and where to leave it. sweep_s: seconds of each sweep. threads: that compute.
    server_flags: further flags of the server, such as --echo-emulate DEVICE."""

    results: Path
    model_path: Path
    python: str = sys.executable
    sweep_s: float = 120.0
    window_s: float = 240.0
    seed: int = 1
    threads: int = THREADS
    server_flags: tuple[str, ...] = SERVER_LIMITS

    @property
    def before(self) -> Sweep:
        """What the server was like before the run; Echo begins with its profile."""
        return Sweep(trace=self.results / "before.jsonl", profile=self.results / "before.json")

    @property
    def after(self) -> Sweep:
        """What it was like after it: a shared machine becomes slower and faster by the minute."""
        return Sweep(trace=self.results / "after.jsonl", profile=self.results / "after.json")

    def workload(self) -> Workload:
        """The foundation mix, with documents for the whole window as far as there are any."""
        return self._mix(self.seed, self.window_s)

    def aging(self) -> Workload:
        """A mix of other requests that is played before a sweep."""
        return self._mix(AGE_SEED + self.seed, AGE_S)

    def _mix(self, seed: int, window_s: float) -> Workload:
        config = WorkloadConfig(seed=seed, window_s=window_s)
        wanted = math.ceil(DOCUMENTS_A_MINUTE * window_s / 60.0)
        known = len(read_documents(num_words=config.document_words))
        return build_workload(replace(config, num_documents=min(wanted, known)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The real run. host_s: between two iterations. edge_s: added to a first token.
    limits: of the server, tokens and rows."""

    record: RunRecord
    host_s: float
    edge_s: float
    limits: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One message to an idle server: when it was sent, Unix seconds, and its TTFT."""

    sent_unix_s: float
    ttft_s: float


def make_profile(plan: Plan, sweep: Sweep) -> None:
    """Sweep a server and train on its trace. Raises ServerError if a command fails."""
    with Server(_spec(plan, sweep.trace), log=sweep.trace.with_suffix(".log")) as server:
        client = LoadClient(server.base_url, dialect=contenders.ECHO)
        asyncio.run(client.play(plan.aging(), grace_s=GRACE_S))
        _wait_until_idle(server)
        _cli(plan, "profile", server.base_url, "--seconds", f"{plan.sweep_s:g}", "--json")
    _cli(plan, "train", str(sweep.trace), "-o", str(sweep.profile), "--seed", str(plan.seed))


def measure(plan: Plan, workload: Workload) -> Measured:
    """Play `workload` to a server that has the profile."""
    trace = plan.results / RUN
    spec = _spec(plan, trace, "--echo-profile", str(plan.before.profile))
    with Server(spec, log=plan.results / "run.log") as server:
        client = LoadClient(server.base_url, dialect=contenders.ECHO)
        asyncio.run(client.play(warm_up_workload()))
        probes = [_probe(client, number) for number in range(EDGE_PROBES)]
        server.flush_cache()
        record = asyncio.run(client.play(workload, grace_s=GRACE_S))
        server.check_alive()
    steps = load_trace(trace)
    return Measured(
        record=record,
        host_s=host_seconds(steps),
        edge_s=edge_seconds(probes, steps),
        limits=dict(steps.header.limits),
    )


def host_seconds(steps: StepTrace) -> float:
    """Median of the time between two iterations that nobody had to be waited for in between."""
    pairs = zip(steps.records, steps.records[1:], strict=False)
    gaps_s = [after.ended_s - before.ended_s - after.step_s for before, after in pairs]
    busy_s = [gap_s for gap_s in gaps_s if 0.0 <= gap_s < BUSY_GAP_S]
    return statistics.median(busy_s) if busy_s else 0.0


def edge_seconds(probes: Sequence[Probe], steps: StepTrace) -> float:
    """Median of what a client waited beyond the iterations that computed its prompt."""
    prompts = [
        (steps.header.started_unix_s + r.ended_s, r.step_s) for r in steps.records if r.sums.tokens
    ]
    ends_s = [*(probe.sent_unix_s for probe in probes[1:]), math.inf]
    beyond_s = [
        probe.ttft_s - sum(step_s for at_s, step_s in prompts if probe.sent_unix_s <= at_s < end_s)
        for probe, end_s in zip(probes[:-1], ends_s, strict=False)
    ]
    return max(statistics.median(beyond_s), 0.0)


def scatter(sweep: Sweep) -> tuple[float, ...]:
    """How a sweep's iterations lie around what its profile says of them."""
    model = load_profile(sweep.profile).model
    samples = samples_of(load_trace(sweep.trace), warm_up=WARM_UP_ITERATIONS)
    return tuple(sample.seconds / model.predict(sample.shape) for sample in samples)


def _wait_until_idle(server: Server) -> None:
    """Until what a client left is aborted. The cache is not flushed: that would make the pool new.
    Raises ServerError if the server stays busy."""
    give_up_s = time.monotonic() + GRACE_S
    while any(httpx.get(f"{server.base_url}/echo/status").json()["requests"].values()):
        if time.monotonic() > give_up_s:
            raise ServerError(f"the server is still busy; {server.log_tail()}")
        time.sleep(0.2)


def _probe(client: LoadClient, number: int) -> Probe:
    """One message, of a text of its own, to an idle server, for one token."""
    workload = lone_message_workload(5000 + number, tokens_out=1)
    sent_unix_s = time.time()
    answer = asyncio.run(client.play(workload, grace_s=GRACE_S)).online[0]
    if answer.first_s is None:
        raise ServerError(f"an idle server did not answer: {answer.error}")
    return Probe(sent_unix_s=sent_unix_s, ttft_s=answer.first_s - answer.sent_s)


def _spec(plan: Plan, trace: Path, *flags: str) -> ServerSpec:
    return ServerSpec(
        module=ECHO_MODULE,
        python=plan.python,
        model_path=plan.model_path,
        flags=contenders.echo(("--echo-trace", str(trace), *plan.server_flags, *flags)).flags,
        env={"OMP_NUM_THREADS": str(plan.threads)},
    )


def _cli(plan: Plan, *arguments: str) -> None:
    command = [plan.python, "-m", "echo_sglang.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if done.returncode:
        raise ServerError(f"echo-sglang {arguments[0]} failed:\n{done.stdout}{done.stderr}"[-2000:])
