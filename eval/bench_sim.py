"""How fast the emulator runs, and what it spends its time on (`python eval/run.py bench-sim`).

Poisson chat at 2/s beside pooled questions to documents (4,000 + 60 tokens, 64 out, shuffled) on
an emulated A100-80G with Llama-3.1-8B and 400,000 KV tokens, one process a run: virtual seconds
per CPU second of the event loop (the intake of the pool is part of it, so short windows weigh it
more), then the share of CPU by the code that was running, sampled by a CPU timer; calls into
torch and the standard library count for the code that made them.
"""

from __future__ import annotations

import argparse
import signal
from collections import Counter
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from echo_sglang.config import EchoConfig
from echo_sglang.errors import WorkloadError
from echo_sglang.sim.arrivals import PoissonTraffic
from echo_sglang.sim.documents import DocumentQuestions
from echo_sglang.sim.processes import run_apart
from echo_sglang.sim.run import execute
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.spec import RunSpec
from eval.harness.server import REPOSITORY

SAMPLE_EVERY_S = 0.004
LOOP = "run_event_loop"
QUESTIONS = 10
PARTS = (
    ("echo_sglang/sim/", "emulator"),
    ("echo_sglang/", "Echo's decisions and cache"),
    ("sglang/srt/mem_cache/", "SGLang's cache and allocators"),
    ("sglang/srt/managers/", "SGLang's scheduler"),
    ("sglang/", "SGLang, the rest"),
)
SETUPS = {
    "echo": ServerSetup(echo=EchoConfig(slo_ttft_ms=500, slo_tpot_ms=50), mixed=True),
    "stock": ServerSetup(priority=True, server_args={"retraction_policy": "priority"}),
}


@dataclass(slots=True)
class Sampler:
    """Counts, at every tick of this process's CPU timer, whose code the event loop runs."""

    ticks: Counter[str] = field(default_factory=Counter)

    def start(self) -> None:
        """Tick from now on, until the process ends."""
        signal.signal(signal.SIGPROF, self._tick)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_EVERY_S, SAMPLE_EVERY_S)

    def _tick(self, signum: int, frame: FrameType | None) -> None:
        part: str | None = None
        while frame is not None:
            if part is None:
                part = part_of(frame.f_code.co_filename)
            if frame.f_code.co_name == LOOP:
                self.ticks[part or "Python"] += 1
                return
            frame = frame.f_back


def part_of(file_name: str) -> str | None:
    """The part of the emulation that a source file belongs to, None if to none."""
    place = file_name.removeprefix(f"{REPOSITORY}/").rpartition("site-packages/")[2]
    return next((part for folder, part in PARTS if place.startswith(folder)), None)


def spec_of(contender: str, pooled: int, window_s: float, seed: int) -> RunSpec:
    """The run to measure; `pooled` is rounded up to whole documents."""
    documents = -(-pooled // QUESTIONS)
    return RunSpec(
        device="A100-80G:Llama-3.1-8B",
        setup=SETUPS[contender],
        recipes=(
            PoissonTraffic(rate_per_s=2.0, window_s=window_s),
            DocumentQuestions(documents=documents, questions=QUESTIONS),
        ),
        seed=seed,
        window_s=window_s,
    )


def measure(spec: RunSpec) -> tuple[dict[str, Any], dict[str, float]]:
    """In a process of its own: the run's summary, and the share of CPU of each part."""
    sampler = Sampler()
    sampler.start()
    summary = execute(spec)["summary"]
    total = max(sum(sampler.ticks.values()), 1)
    return summary, {part: count / total for part, count in sampler.ticks.most_common()}


def add_command(commands: Any) -> None:
    """Add `bench-sim` to the subcommands of an argparse parser."""
    command = commands.add_parser("bench-sim", help="virtual seconds per CPU second, and on what")
    command.add_argument("--pooled", default="10000", help="comma-separated (%(default)s)")
    command.add_argument("--contenders", default="echo,stock", help="of these (%(default)s)")
    command.add_argument("--window-s", type=float, default=600.0, help="virtual (%(default)s)")
    command.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    command.set_defaults(execute=main)


def main(arguments: argparse.Namespace) -> None:
    """Print a line and a breakdown for every run. Raises WorkloadError for an unknown name."""
    for name in arguments.contenders.split(","):
        if name not in SETUPS:
            raise WorkloadError(f"unknown contender {name!r}; there are {', '.join(SETUPS)}")
        for pooled in map(int, arguments.pooled.split(",")):
            spec = spec_of(name, pooled, arguments.window_s, arguments.seed)
            report(name, pooled, *next(run_apart(measure, [spec])))


def report(name: str, pooled: int, summary: dict[str, Any], shares: dict[str, float]) -> None:
    """One run in words."""
    print(
        f"{name}, {pooled} pooled: {summary['virtual_per_cpu_s']:.1f} virtual s per CPU s, "
        f"{summary['iterations']} iterations, decision p50 {summary['decide_p50_ms']:.2f} ms, "
        f"batches {summary['batches_sha1'][:12]}"
    )
    for part, share in shares.items():
        print(f"    {share:6.1%}  {part}", flush=True)
