"""Who takes the scheduler's time in an iteration: SGLang, what Echo adds, or the KV cache.

Every method in which Echo's code begins or gives way to SGLang's is wrapped, and each moment
belongs to one of them only: SGLang's own methods that Echo calls by `super()` are SGLang's
time, what SGLang's loop asks of Echo in between is Echo's. Two clocks are read, CPU time of
the thread and wall time. What reading them takes itself is measured on calls that do nothing, at
the start, and taken off each owner: a median, with warm caches, so rather too little.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

OWNERS = ("added", "cache", "engine")
SPANS = ("decide", "snapshot", "refit")
Reading = tuple[float, float]
"""Seconds of CPU time of this thread and of wall time."""

CALIBRATION_CALLS = 2000
WARM_UP = 20
LEAST_ITERATIONS = 30
LOOP_COUNT = 500


def now() -> Reading:
    """Both clocks."""
    return time.thread_time(), time.perf_counter()


class Meter:
    """Seconds by owner and by span, summed within an iteration."""

    def __init__(self) -> None:
        self.iterations: list[dict[str, Reading]] = []
        self.rows: list[int] = []
        self.rows_now = 0
        self.loops_s: list[float] = []
        self.collections: list[tuple[int, float]] = []
        self._collections_so_far = 0
        self.ended = False
        self._now: dict[str, Reading] = {}
        self._owners = ["engine"]
        self._since = now()
        self._collecting_since_s = 0.0
        self._inside: Reading = (0.0, 0.0)
        self._outside: Reading = (0.0, 0.0)
        self._own: dict[str, list[float]] = {}
        self._calibrate()
        gc.callbacks.append(self._collector)

    def next_iteration(self) -> None:
        """What was measured since the last call is one iteration, as long as the run goes on."""
        self._switch()
        if self._now and not self.ended:
            self.iterations.append(self._without_own())
            self.rows.append(self.rows_now)
            if len(self.iterations) == WARM_UP:
                self.collections.clear()
            self._collections_so_far = len(self.collections)
        self._now, self._own = {}, {}
        start_s = time.thread_time()
        for _ in range(LOOP_COUNT):
            pass
        self.loops_s.append(time.thread_time() - start_s)
        self._since = now()

    def owned(self, function: Callable[..., Any], owner: str) -> Callable[..., Any]:
        """`function`, its time charged to `owner`, but for what others own within."""

        @wraps(function)
        def charged(*args: Any, **kwargs: Any) -> Any:
            self._enter(owner)
            try:
                return function(*args, **kwargs)
            finally:
                self._leave()

        return charged

    def owned_steps(
        self, function: Callable[..., Iterator[Any]], owner: str
    ) -> Callable[..., Iterator[Any]]:
        """The same for a generator: every step of it is charged."""

        def charged(*args: Any, **kwargs: Any) -> Iterator[Any]:
            steps = function(*args, **kwargs)
            while True:
                self._enter(owner)
                try:
                    step = next(steps, self)
                finally:
                    self._leave()
                if step is self:
                    return
                yield step

        return charged

    def span(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`function`, all of its time noted under `name` as well, whoever owns it."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = now()
            try:
                return function(*args, **kwargs)
            finally:
                self._add(name, start, now())

        return timed

    def _calibrate(self) -> None:
        """What one charged call costs the owner that is called and the one that calls."""
        nothing = self.owned(lambda: None, "called")
        with_call, without = [], []
        for _ in range(CALIBRATION_CALLS):
            self._now, self._since = {}, now()
            nothing()
            self._switch()
            with_call.append(self._now)
            self._now, self._since = {}, now()
            self._switch()
            without.append(self._now)
        around, between = _median_of("engine", with_call), _median_of("engine", without)
        self._inside = _median_of("called", with_call)
        self._outside = (around[0] - between[0], around[1] - between[1])
        self._now, self._own = {}, {}
        self._since = now()

    def _without_own(self) -> dict[str, Reading]:
        """This iteration's readings without what the meter itself took of each."""
        readings = dict(self._now)
        for owner, (cpu_s, wall_s) in self._own.items():
            found = readings.get(owner, (0.0, 0.0))
            readings[owner] = (max(found[0] - cpu_s, 0.0), max(found[1] - wall_s, 0.0))
        return readings

    def _took(self, owner: str, seconds: Reading) -> None:
        own = self._own.setdefault(owner, [0.0, 0.0])
        own[0] += seconds[0]
        own[1] += seconds[1]

    def _enter(self, owner: str) -> None:
        self._switch()
        self._took(self._owners[-1], self._outside)
        self._took(owner, self._inside)
        self._owners.append(owner)

    def _leave(self) -> None:
        self._switch()
        self._owners.pop()

    def _switch(self) -> None:
        reading = now()
        self._add(self._owners[-1], self._since, reading)
        self._since = reading

    def _add(self, name: str, start: Reading, end: Reading) -> None:
        cpu_s, wall_s = self._now.get(name, (0.0, 0.0))
        self._now[name] = (cpu_s + end[0] - start[0], wall_s + end[1] - start[1])

    def _collector(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_since_s = time.thread_time()
        else:
            spent_s = time.thread_time() - self._collecting_since_s
            self.collections.append((info["generation"], spent_s))

    def readings(self) -> dict[str, Any]:
        """All that was measured after the warm-up, as JSON values; `figures_of` sums it up."""
        rows = self.iterations[WARM_UP:]
        if len(rows) < LEAST_ITERATIONS:
            raise SystemExit(
                f"{len(rows)} iterations after {WARM_UP} of warm-up say nothing of a p99; "
                f"--window-s must be longer, for {LEAST_ITERATIONS} at least"
            )
        nothing = (0.0, 0.0)
        parts = {name: [row.get(name, nothing) for row in rows] for name in (*OWNERS, *SPANS)}
        return {
            "parts": parts,
            "rows": self.rows[WARM_UP:],
            "loops_s": self.loops_s,
            "collections": self.collections[: self._collections_so_far],
        }


def _median_of(owner: str, readings: Sequence[dict[str, Reading]]) -> Reading:
    cpu_s, wall_s = zip(*[reading[owner] for reading in readings], strict=True)
    return statistics.median(cpu_s), statistics.median(wall_s)


def figures_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Microseconds by part: median and p99 of CPU time, then of wall time.

    runs: readings of runs that did the same, iteration by iteration. The least of each iteration
    counts: what they differ by is other processes on the machine.
    """
    least = {
        name: [
            [min(run["parts"][name][i][clock] for run in runs) for clock in (0, 1)]
            for i in range(len(runs[0]["rows"]))
        ]
        for name in (*OWNERS, *SPANS)
    }
    owned = [least[owner] for owner in OWNERS]
    total = [
        [sum(reading[clock] for reading in readings) for clock in (0, 1)]
        for readings in zip(*owned, strict=True)
    ]
    first = runs[0]
    refits = [1e6 * cpu_s for cpu_s, _ in least["refit"] if cpu_s]
    full = [1e6 * spent_s for generation, spent_s in first["collections"] if generation == 2]
    loops_s = [loop_s for run in runs for loop_s in run["loops_s"]]
    found: dict[str, Any] = {
        name: [
            *_median_and_p99([cpu_s for cpu_s, _ in values]),
            *_median_and_p99([wall_s for _, wall_s in values]),
        ]
        for name, values in (*least.items(), ("iteration", total))
    }
    return found | {
        "iterations": len(first["rows"]),
        "rows": statistics.fmean(first["rows"]),
        "refits": [len(refits), statistics.median(refits or [0.0]), max(refits, default=0.0)],
        "collected": sum(s for _, s in first["collections"]) / sum(cpu_s for cpu_s, _ in total),
        "full_collections": [len(full), max(full, default=0.0)],
        "slowdown": statistics.median(loops_s) / min(loops_s),
        "single": _median_and_p99([cpu_s for cpu_s, _ in first["parts"]["added"]]),
    }


def _median_and_p99(seconds: Sequence[float]) -> tuple[float, float]:
    values = sorted(1e6 * value for value in seconds)
    return statistics.median(values), values[min(int(0.99 * len(values)), len(values) - 1)]


def install(meter: Meter, *, echo: bool) -> None:
    """Put the meter around SGLang's and Echo's methods, before a scheduler is made."""
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    from echo_sglang.sim import scheduler as emulation
    from echo_sglang.sim.worker import EmulatedWorker

    chosen = emulation.Emulation.get_next_batch_to_run

    def get_next_batch_to_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        meter.next_iteration()
        return chosen(self, *args, **kwargs)

    launched = emulation.Emulation.run_batch

    def run_batch(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        meter.rows_now = len(batch.reqs)
        return launched(self, batch, *args, **kwargs)

    emulated: Any = emulation.Emulation
    emulated.get_next_batch_to_run, emulated.run_batch = get_next_batch_to_run, run_batch
    closing = emulation.Emulation._closing_messages

    def _closing_messages(self: Any, *args: Any) -> Any:
        messages = closing(self, *args)
        # Everything that still waits is aborted now, which is no work of an iteration.
        meter.ended = meter.ended or bool(messages)
        return messages

    emulated._closing_messages = _closing_messages
    _own_all(meter, emulated, ("ingest_requests", "on_idle"), "clients")
    _own_all(meter, EmulatedWorker, ("forward_batch_generation",), "clients")
    _own_all(meter, UnifiedRadixCache, CACHE_METHODS, "cache")
    if echo:
        _install_echo(meter)


CACHE_METHODS = (
    "match_prefix", "insert", "evict", "evict_for_alloc", "inc_lock_ref", "dec_lock_ref",
    "lock", "unlock", "checkpoint", "checkpoint_into_tree",
)  # fmt: skip
DECIDING = ("_should_defer_prefill", "_get_new_batch_prefill_raw", "update_running_batch")
LEARNING = ("run_batch", "process_batch_result")
ARRIVING = ("handle_generate_request", "_add_request_to_queue", "_create_generation_req")
ADDING = ("add_chunked_req", "add_one_req", "__init__")


def _install_echo(meter: Meter) -> None:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.managers.schedule_policy import PrefillAdder
    from sglang.srt.managers.scheduler import Scheduler

    from echo_sglang.adapter import scheduler as adapter
    from echo_sglang.adapter.intake import RequestIntake
    from echo_sglang.adapter.learning import StepLearning
    from echo_sglang.adapter.prefill_adder import EchoPrefillAdder
    from echo_sglang.estimate.step_time import StepTimeFitter

    echo: Any = adapter.EchoScheduler
    for base in Scheduler.__mro__[:-1]:
        own = (*DECIDING, *LEARNING, *ARRIVING)
        _own_all(meter, base, [name for name in own if name in vars(base)], "engine")
    _own_all(meter, PrefillAdder, ADDING, "engine")
    _own_all(meter, Req, ("__init__",), "engine")
    _own_all(meter, echo, DECIDING, "added")
    _own_all(meter, StepLearning, LEARNING, "added")
    _own_all(meter, RequestIntake, ARRIVING, "added")
    _own_all(meter, EchoPrefillAdder, ADDING, "added")
    echo.prefill_candidates = meter.owned_steps(echo.prefill_candidates, "added")
    adapter.decide = meter.span(adapter.decide, "decide")
    adapter.take_snapshot = meter.span(adapter.take_snapshot, "snapshot")
    fitter: Any = StepTimeFitter
    fitter.refit = meter.span(fitter.refit, "refit")


def _own_all(meter: Meter, owner_class: type, names: Sequence[str], owner: str) -> None:
    for name in names:
        setattr(owner_class, name, meter.owned(getattr(owner_class, name), owner))
