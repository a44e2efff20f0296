"""What deciding costs the scheduler, by pool size, beside stock SGLang with the same queue.

    python eval/bench_decide.py [--pooled 1000,10000,100000] [--window-s 8] [--sharing both]

The real scheduler on an emulated A100 with Llama-3.1-8B, one process a contender and size: N
offline requests of about 1,000 tokens (20 questions to a document of 900, or sharing nothing)
wait from the start, online ones arrive at 2/s. Figures are microseconds of CPU time of the
scheduler's thread per iteration, so that other load on the machine does not count; nothing that
is timed waits for anything.

    decide       the policy's decision alone
    added        all that Echo adds to an iteration: snapshot with its candidates, decision,
                 release, taking requests out of the pool, learning from the last iteration
    iteration    SGLang's `get_next_batch_to_run` as a whole, which contains all of that but
                 learning; stock with priority scheduling sorts and walks its queue in it
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

DEVICE = "A100-80G:Llama-3.1-8B"
WARM_UP = 20
LEAST_ITERATIONS = 30
SEED = 1
BOUNDS_US = {"decide": (200.0, 1000.0), "added": (500.0, 2000.0)}
"""Median and p99 that Echo wants to stay within."""

STOCK_CHUNK_TOKENS = 1024
"""Stock fills every chunk; short ones give as many iterations in a window as Echo has."""

PARTS = ("decide", "snapshot", "added", "iteration")


class Meter:
    """CPU time by part, summed within an iteration; parts within parts count once in each."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, float]] = []
        self._now: dict[str, float] = {}
        self._depth: dict[str, int] = {}

    def next_iteration(self) -> None:
        """What was measured since the last call is one iteration."""
        if self._now:
            self.iterations.append(self._now)
        self._now = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens within."""
        self._depth[name] = self._depth.get(name, 0) + 1
        start = time.thread_time()
        try:
            yield
        finally:
            spent = time.thread_time() - start
            self._depth[name] -= 1
            if not self._depth[name]:
                self._now[name] = self._now.get(name, 0.0) + spent

    def timing(self, function: Callable[..., Any], *names: str) -> Callable[..., Any]:
        """`function`, its time counted in the parts of these names."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(names[0]):
                if len(names) == 1:
                    return function(*args, **kwargs)
                with self.part(names[1]):
                    return function(*args, **kwargs)

        return timed

    def figures(self) -> dict[str, list[float]]:
        """Median and p99 of every part, microseconds."""
        rows = self.iterations[WARM_UP:]
        if len(rows) < LEAST_ITERATIONS:
            raise SystemExit(
                f"{len(rows)} iterations after {WARM_UP} of warm-up say nothing of a p99; "
                f"--window-s must be longer, for {LEAST_ITERATIONS} at least"
            )
        found = {}
        for name in PARTS:
            values = sorted(1e6 * row.get(name, 0.0) for row in rows)
            p99 = values[min(int(0.99 * len(values)), len(values) - 1)]
            found[name] = [statistics.median(values), p99]
        found["iterations"] = [len(rows), 0.0]
        return found


def install(meter: Meter, *, echo: bool) -> None:
    """Put the meter around SGLang's and Echo's methods, before a scheduler is made."""
    from echo_sglang.sim import scheduler as emulation

    chosen = emulation.Emulation.get_next_batch_to_run

    def get_next_batch_to_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        meter.next_iteration()
        with meter.part("iteration"):
            return chosen(self, *args, **kwargs)

    emulation.Emulation.get_next_batch_to_run = get_next_batch_to_run  # type: ignore[method-assign]
    if not echo:
        return
    from echo_sglang.adapter import scheduler as adapter
    from echo_sglang.adapter.learning import StepLearning
    from echo_sglang.adapter.offline_queue import OfflineQueue

    adapter.decide = meter.timing(adapter.decide, "added", "decide")
    adapter.take_snapshot = meter.timing(adapter.take_snapshot, "added", "snapshot")
    own = {
        adapter.EchoScheduler: ("_release",),
        OfflineQueue: ("admitted", "tokens"),
        StepLearning: ("_learn", "_follow"),
    }
    for owner, names in own.items():
        for name in names:
            setattr(owner, name, meter.timing(getattr(owner, name), "added"))


def measure(contender: str, pooled: int, sharing: bool, window_s: float) -> dict[str, list[float]]:
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
    online = PoissonTraffic(rate_per_s=2.0, window_s=window_s, output=Lengths(mean=100))
    offline = DocumentQuestions(
        documents=pooled // 20 if sharing else pooled,
        questions=20 if sharing else 1,
        document_tokens=900,
        question_tokens=100,
        output_tokens=64,
    )
    setup = ServerSetup(
        echo=EchoConfig(slo_ttft_ms=500, slo_tpot_ms=50) if echo else None,
        priority=not echo,
        mixed=echo,
        kv_tokens=200_000,
        chunk_tokens=8192 if echo else STOCK_CHUNK_TOKENS,
    )
    workload = merge(online.requests(SEED), offline.requests(SEED))
    run(workload, device_from(DEVICE), setup, window_s=window_s, grace_s=0.0)
    return meter.figures()


def in_child(arguments: list[str]) -> dict[str, list[float]]:
    """A process of its own for every run: SGLang's state is global."""
    ended = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(ended.stderr[-3000:])
    found: dict[str, list[float]] = json.loads(ended.stdout.splitlines()[-1])
    return found


def report(sizes: list[int], sharing: bool, window_s: float, contenders: list[str]) -> bool:
    """Measure and print one table; returns whether Echo kept its bounds."""
    print(
        f"\noffline requests that share {'documents' if sharing else 'nothing'}; median / p99, us"
    )
    print(f"{'':6}{'pooled':>8}" + "".join(f"{name:>19}" for name in PARTS) + f"{'iterations':>12}")
    found = {}
    for size in sizes:
        for contender in contenders:
            only = f"{contender}:{size}:{int(sharing)}"
            row = found[contender, size] = in_child(["--only", only, "--window-s", str(window_s)])
            parts = PARTS if contender == "echo" else PARTS[-1:]
            cells = "".join(
                f"{row[n][0]:10.0f} /{row[n][1]:7.0f}" if n in parts else f"{'':19}" for n in PARTS
            )
            print(f"{contender:6}{size:8}{cells}{row['iterations'][0]:12.0f}", flush=True)
    kept = True
    for name, bounds in BOUNDS_US.items():
        for size in sizes:
            figures = found["echo", size][name]
            if any(value > bound for value, bound in zip(figures, bounds, strict=True)):
                kept = False
                print(f"over its bound: {name} at {size} pooled, {figures[0]:.0f} / "
                      f"{figures[1]:.0f} us, wanted {bounds[0]:.0f} / {bounds[1]:.0f}")  # fmt: skip
    for name in ("decide", "added"):
        growth = found["echo", sizes[-1]][name][0] / found["echo", sizes[0]][name][0]
        print(f"{name} from {sizes[0]} to {sizes[-1]} pooled: {growth:.2f} times the median")
    if "stock" in contenders:
        ratio = found["stock", sizes[-1]]["iteration"][0] / found["echo", sizes[-1]]["iteration"][0]
        print(f"an iteration at {sizes[-1]} pooled: stock takes {ratio:.1f} times Echo's")
    return kept


def main() -> int:
    """Exit code 1 if Echo did not keep its bounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pooled", default="1000,10000,100000")
    parser.add_argument("--window-s", type=float, default=8.0, help="virtual seconds of each run")
    parser.add_argument("--sharing", choices=("both", "documents", "nothing"), default="both")
    parser.add_argument("--contenders", default="echo,stock", help="echo, or echo,stock")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        contender, size, sharing = arguments.only.split(":")
        print(json.dumps(measure(contender, int(size), sharing == "1", arguments.window_s)))
        return 0
    sizes = [int(size) for size in arguments.pooled.split(",")]
    contenders = arguments.contenders.split(",")
    kinds = {"both": (True, False), "documents": (True,), "nothing": (False,)}
    kept = [
        report(sizes, sharing, arguments.window_s, contenders)
        for sharing in kinds[arguments.sharing]
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
