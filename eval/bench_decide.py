"""What deciding costs the scheduler, by pool size and rows, beside stock with the same queue.

    python eval/bench_decide.py [--pooled 1000,10000,100000] [--loads evaluation,documents,...]

The real scheduler on an emulated A100 with Llama-3.1-8B, one process a run: N offline requests
wait from the start, online ones arrive, 2/s where nothing else is said. Loads:

    evaluation   that of `eval/run.py emulated`: online 600 tokens in and 200 out, 10 questions to
                 a document of 4,000 tokens; what is asked of Echo is asked with this load
    documents    20 questions to a document of 900 tokens; about two are admitted an iteration
    rows         the same documents, long answers and many more online requests, so that about 200
                 rows decode
    unshared     no two prompts share anything

The last three say how the cost grows with rows and admissions, and are held to no bound.

Virtual time does not depend on the machine, so runs of a kind compute the same batches (their
SHA-1 is compared), and of every iteration the least of --repeats runs counts: other processes only
add. Figures are microseconds an iteration of CPU time of the scheduler's thread or, where it says
so, of wall time; garbage collection is in them.

    decide       the policy's decision alone; part of `added`
    snapshot     what it decides on, candidates and their cached lengths; part of `added`
    added        all that Echo does and stock does not, but for the cache: snapshot, decision,
                 decision log, release, taking requests out of the pool, the adder's bounds,
                 learning from the last iteration, following requests
    cache        calls of the KV cache: Echo's tree core in Python, stock's in Rust
    iteration    all of the event loop but the emulated device and clients
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from eval.iteration_meter import Meter, figures_of, install  # noqa: E402

DEVICE = "A100-80G:Llama-3.1-8B"
SEED = 1
BOUNDS_US = {"decide": (200.0, 1000.0), "added": (500.0, 2000.0)}
"""Median and p99 of CPU time that Echo wants to stay within with the load BOUNDED."""

BOUNDED = "evaluation"

STOCK_CHUNK_TOKENS = 1024
"""Stock fills every chunk; short ones give as many iterations in a window as Echo has."""

PARTS = ("decide", "snapshot", "added", "cache", "iteration")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """online_prompt, online_tokens, offline_tokens: of prompts and answers, in the mean.
    sharing: prompts of one document. document_tokens, question_tokens: of each prompt.
    kv_tokens: of the server."""

    rate_per_s: float = 2.0
    online_prompt: int = 500
    online_tokens: int = 100
    offline_tokens: int = 64
    sharing: int = 20
    document_tokens: int = 900
    question_tokens: int = 100
    kv_tokens: int = 200_000


LOADS = {
    "evaluation": Load(
        online_prompt=600,
        online_tokens=200,
        sharing=10,
        document_tokens=4000,
        question_tokens=60,
        kv_tokens=400_000,
    ),
    "documents": Load(),
    "rows": Load(rate_per_s=14.0, online_prompt=60, online_tokens=250, offline_tokens=128),
    "unshared": Load(sharing=1),
}


def measure(contender: str, pooled: int, load: Load, window_s: float) -> dict[str, Any]:
    """One emulated run in this process."""
    from echo_sglang.config import EchoConfig
    from echo_sglang.sim.arrivals import Lengths, PoissonTraffic
    from echo_sglang.sim.catalog import device_from
    from echo_sglang.sim.documents import DocumentQuestions
    from echo_sglang.sim.environment import prepare_environment
    from echo_sglang.sim.run import run
    from echo_sglang.sim.setup import ServerSetup
    from echo_sglang.sim.workload import merge

    prepare_environment()
    echo = contender == "echo"
    meter = Meter()
    install(meter, echo=echo)
    online = PoissonTraffic(
        rate_per_s=load.rate_per_s,
        window_s=window_s,
        prompt=Lengths(mean=load.online_prompt),
        output=Lengths(mean=load.online_tokens),
    )
    offline = DocumentQuestions(
        documents=pooled // load.sharing,
        questions=load.sharing,
        document_tokens=load.document_tokens,
        question_tokens=load.question_tokens,
        output_tokens=load.offline_tokens,
    )
    setup = ServerSetup(
        echo=EchoConfig(slo_ttft_ms=500, slo_tpot_ms=50) if echo else None,
        priority=not echo,
        mixed=echo,
        kv_tokens=load.kv_tokens,
        chunk_tokens=8192 if echo else STOCK_CHUNK_TOKENS,
    )
    workload = merge(online.requests(SEED), offline.requests(SEED))
    done = run(workload, device_from(DEVICE), setup, window_s=window_s, grace_s=0.0)
    return meter.readings() | {"sha1": done.emulator.steps.sha1}


def in_child(arguments: list[str]) -> dict[str, Any]:
    """A process of its own for every run: SGLang's state is global."""
    ended = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(ended.stderr[-3000:])
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def measured(only: str, window_s: float, repeats: int) -> dict[str, Any]:
    """The figures of runs that computed the same batches. Raises SystemExit if they did not."""
    runs = [in_child(["--only", only, "--window-s", str(window_s)]) for _ in range(repeats)]
    if len({run["sha1"] for run in runs}) > 1:
        raise SystemExit(f"runs of {only} computed different batches: nothing to compare")
    return figures_of(runs)


def report(
    sizes: list[int], name: str, window_s: float, contenders: list[str], repeats: int
) -> bool:
    """Measure and print one table; returns whether Echo kept its bounds, if it has any here."""
    print(f"\nload {name}: CPU median / p99 of an iteration, us; for added also wall median / p99")
    heads = [f"{part:>17}" for part in PARTS]
    heads.insert(3, f"{'added, wall':>17}")
    print(f"{'':6}{'pooled':>8}{'rows':>6}" + "".join(heads) + f"{'iterations':>12}")
    found = {}
    for size in sizes:
        for contender in contenders:
            row = measured(f"{contender}:{size}:{name}", window_s, repeats)
            found[contender, size] = row
            _print_row(contender, size, row)
    kept = True
    for part, bounds in BOUNDS_US.items() if name == BOUNDED else ():
        for size in sizes:
            figures = found["echo", size][part][:2]
            if any(value > bound for value, bound in zip(figures, bounds, strict=True)):
                kept = False
                print(f"over its bound: {part} at {size} pooled, {figures[0]:.0f} / "
                      f"{figures[1]:.0f} us, wanted {bounds[0]:.0f} / {bounds[1]:.0f}")  # fmt: skip
    for part in ("decide", "added"):
        growth = found["echo", sizes[-1]][part][0] / found["echo", sizes[0]][part][0]
        print(f"{part} from {sizes[0]} to {sizes[-1]} pooled: {growth:.2f} times the median")
    if "stock" in contenders:
        ratio = found["stock", sizes[-1]]["iteration"][0] / found["echo", sizes[-1]]["iteration"][0]
        print(f"an iteration at {sizes[-1]} pooled: stock takes {ratio:.1f} times Echo's")
    return kept


def _print_row(contender: str, size: int, row: dict[str, Any]) -> None:
    pairs = [
        (row[part][:2] if contender == "echo" or part in PARTS[-2:] else None) for part in PARTS
    ]
    pairs.insert(3, row["added"][2:] if contender == "echo" else None)
    cells = "".join(f"{'':17}" if p is None else f"{p[0]:9.0f} /{p[1]:6.0f}" for p in pairs)
    print(f"{contender:6}{size:8}{row['rows']:6.0f}{cells}{row['iterations']:12.0f}")
    times, median, worst = row["refits"]
    full, longest = row["full_collections"]
    refits = f"{times} refits of {median:.0f} us, at most {worst:.0f}; " if times else ""
    print(
        f"      {refits}garbage collection {row['collected']:.1%} of the time, {full} full ones "
        f"of {longest:.0f} us at most; added in the first run alone {row['single'][0]:.0f} / "
        f"{row['single'][1]:.0f}; cores {row['slowdown']:.2f} times as slow as at best",
        flush=True,
    )


def main() -> int:
    """Exit code 1 if Echo did not keep its bounds with the load BOUNDED."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pooled", default="1000,10000,100000")
    parser.add_argument("--window-s", type=float, default=8.0, help="virtual seconds of each run")
    parser.add_argument("--loads", default=",".join(LOADS), help=", ".join(LOADS))
    parser.add_argument("--repeats", type=int, default=3, help="equal runs of each")
    parser.add_argument("--contenders", default="echo,stock", help="echo, or echo,stock")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        contender, size, name = arguments.only.split(":")
        print(json.dumps(measure(contender, int(size), LOADS[name], arguments.window_s)))
        return 0
    sizes = [int(size) for size in arguments.pooled.split(",")]
    contenders = arguments.contenders.split(",")
    names = arguments.loads.split(",")
    if not set(names) <= set(LOADS):
        parser.error(f"--loads {arguments.loads}: known are {', '.join(LOADS)}")
    kept = [
        report(sizes, name, arguments.window_s, contenders, arguments.repeats) for name in names
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
