"""How well step time is estimated on measured GPU tables: held-out error, reach, drift, cost.

Iterations are composed from the tables (see gpu_tables.py), split 30/20/50 into fitting,
calibration and judging. "random" batches are log-uniform in every quantity, "grid" batches
are the tables' own. No wall clock enters but in the costs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from echo_sglang.domain.batch import BatchShape, Regime, StepSample
from echo_sglang.domain.snapshot import MemoryView, OfflineCandidate, OnlineLoad, Snapshot
from echo_sglang.estimate.step_time import StepTimeFitter, StepTimeModel
from echo_sglang.estimate.training import Training, judge, train
from echo_sglang.policy.coscheduler import decide
from echo_sglang.policy.settings import CoschedulerSettings
from echo_sglang.policy.slack import SloSettings
from eval.gpu_tables import (
    IterationTable,
    KernelTable,
    Mix,
    OperatorTable,
    grid_samples,
    random_samples,
)
from eval.harness.report import write_json
from eval.harness.server import REPOSITORY

DATA = REPOSITORY.parent / "shared" / "data"
INNER = Mix(max_chunk=1024, max_prefix=4096, max_rows=64, max_kv=4096, kv_capacity=131_072)
OUTER = Mix()
DRIFTS: dict[str, Callable[[float], float]] = {
    "none": lambda share: 1.0,
    "15% slower from half-way": lambda share: 1.0 if share < 0.5 else 1.15,
    "3 times slower from half-way": lambda share: 1.0 if share < 0.5 else 3.0,
    "steadily to twice": lambda share: 1.0 + share,
}
"""What measured times are multiplied with, by the share of the run that has passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to evaluate. samples: random batches per table and seed."""

    results: Path
    kernels: tuple[Path, ...]
    operators: tuple[Path, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    samples: int = 6000

    def tables(self) -> list[IterationTable]:
        """All tables. Raises WorkloadError if one is absent."""
        kernels: list[IterationTable] = [KernelTable(folder) for folder in self.kernels]
        return [*kernels, *(OperatorTable(folder) for folder in self.operators)]


def default_kernels() -> tuple[Path, ...]:
    """LLMServingSim folders beside the project."""
    return tuple(sorted((DATA / "llmservingsim_measured" / "kernel").glob("*Llama-3.1-8B*")))


def default_operators() -> tuple[Path, ...]:
    """aiconfigurator folders beside the project."""
    return tuple(p for p in sorted((DATA / "aiconfigurator_silicon").glob("*")) if p.is_dir())


def run(plan: Plan) -> dict[str, pd.DataFrame]:
    """Evaluate, write one CSV file per part and summary.json, return the parts by name."""
    held_out: list[dict[str, Any]] = []
    beyond: list[dict[str, Any]] = []
    drift: list[dict[str, Any]] = []
    cost: list[dict[str, Any]] = []
    for table in plan.tables():
        for seed in plan.seeds:
            rng = np.random.default_rng(seed)
            samples = random_samples(table, rng, plan.samples, OUTER)
            trained = train(samples, seed=seed)
            held_out += _held_out(table.name, "random", seed, trained)
            held_out += _held_out(table.name, "grid", seed, train(grid_samples(table), seed=seed))
            beyond.append({"table": table.name, "seed": seed} | extrapolation(table, seed))
            drift += [{"table": table.name, "seed": seed} | row for row in drifting(samples, seed)]
        cost.append({"table": table.name} | costs(trained.model, samples))
    parts = {
        name: pd.DataFrame(rows)
        for name, rows in (
            ("held_out", held_out), ("beyond", beyond), ("drift", drift), ("cost", cost)
        )
    }  # fmt: skip
    plan.results.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        part.to_csv(plan.results / f"{name}.csv", index=False)
    summary = {name: part.to_dict(orient="records") for name, part in parts.items()}
    write_json(plan.results / "summary.json", {"plan": asdict(plan)} | summary)
    return parts


def _held_out(table: str, batches: str, seed: int, training: Training) -> list[dict[str, Any]]:
    head = {"table": table, "batches": batches, "seed": seed}
    return [head | asdict(report) for report in training.reports]


def extrapolation(table: IterationTable, seed: int) -> dict[str, Any]:
    """Train within INNER; judge batches up to twice as large in some respect.

    exceeded: share of those that took longer than their upper bound. flagged: share that the
    model calls extrapolated. false_alarms: the same among new batches within INNER.
    """
    inner = random_samples(table, np.random.default_rng(seed), 4000, INNER)
    model = train(inner, seed=seed).model
    rng = np.random.default_rng(seed + 1000)
    outer = [s for s in random_samples(table, rng, 6000, OUTER) if _is_beyond(s.shape)]
    report = judge(model, outer)[-1]
    again = random_samples(table, rng, 2000, INNER)
    return {
        "batches": len(outer),
        "exceeded": 1.0 - report.coverage,
        "flagged": _share_extrapolated(model, outer),
        "false_alarms": _share_extrapolated(model, again),
        "p50_error": report.p50_error,
        "p95_error": report.p95_error,
    }


def _is_beyond(shape: BatchShape) -> bool:
    """Outside of INNER by more than a tenth in some respect."""
    held = shape.decode_kv_tokens + shape.extend_tokens + shape.extend_prefix_tokens
    return held > 1.1 * INNER.kv_capacity or any(
        value > 1.1 * bound
        for value, bound in (
            (shape.extend_tokens, INNER.max_chunk),
            (shape.longest_prefix, INNER.max_prefix),
            (shape.decode_rows, INNER.max_rows),
            (shape.decode_kv_tokens, INNER.max_kv * shape.decode_rows),
        )
    )


def _share_extrapolated(model: StepTimeModel, samples: Sequence[StepSample]) -> float:
    return sum(model.extrapolates(sample.shape) for sample in samples) / len(samples)


def drifting(
    samples: Sequence[StepSample], seed: int, *, steps: int = 2400
) -> list[dict[str, Any]]:
    """Iterations of a server that changes, with 5 % noise, seen by a fixed bound and two fitters.

    The profile was trained under the same noise.

    fixed_coverage: of the profile's own bound. For a fitter that starts from the profile and
    for one that starts from nothing: coverage and median error after the first 200 steps, and
    the steps in safe mode.
    """
    rng = np.random.default_rng(seed + 2000)
    profile = train([_noisy(sample, rng) for sample in samples], seed=seed).model
    rows = []
    for name, drift in DRIFTS.items():
        rng = np.random.default_rng(seed)
        fitters = {"profile": StepTimeFitter(start=profile), "nothing": StepTimeFitter()}
        seen: dict[str, list[tuple[bool, float, bool]]] = {key: [] for key in fitters}
        fixed: list[bool] = []
        for step in range(steps):
            sample = _noisy(samples[int(rng.integers(len(samples)))], rng)
            seconds = sample.seconds * drift(step / steps)
            fixed.append(seconds <= profile.upper(sample.shape))
            for key, fitter in fitters.items():
                seen[key].append(_outcome(fitter, sample.shape, seconds))
                fitter.observe(sample.shape, seconds)
        row: dict[str, Any] = {"drift": name, "fixed_coverage": float(np.mean(fixed))}
        for key, outcomes in seen.items():
            covered, errors, safe = (np.array(column) for column in zip(*outcomes, strict=True))
            active = ~safe[200:]
            row[f"{key}_coverage"] = float(covered[200:][active].mean())
            row[f"{key}_p50_error"] = float(np.median(errors[200:][active]))
            row[f"{key}_safe_steps"] = int(safe[200:].sum())
        rows.append(row)
    return rows


def _noisy(sample: StepSample, rng: np.random.Generator) -> StepSample:
    return StepSample(sample.shape, sample.seconds * math.exp(0.05 * rng.standard_normal()))


def _outcome(fitter: StepTimeFitter, shape: BatchShape, seconds: float) -> tuple[bool, float, bool]:
    model = fitter.model
    error = abs(model.predict(shape) / seconds - 1.0)
    return seconds <= model.upper(shape), error, not model.trained


def costs(profile: StepTimeModel, samples: Sequence[StepSample]) -> dict[str, float]:
    """Microseconds of CPU of each call: the best of 20 rounds, since the machine is shared."""
    from_nothing, from_profile = StepTimeFitter(), StepTimeFitter(start=profile)
    for sample in samples[:1000]:
        from_nothing.observe(sample.shape, sample.seconds)
        from_profile.observe(sample.shape, sample.seconds)
    row: dict[str, float] = {}
    models = {"live": from_nothing.model, "profile": profile, "both": from_profile.model}
    for name, model in models.items():
        shapes = [s.shape for s in samples if s.shape.regime is Regime.MIXED][:200]
        row[f"predict_{name}_us"] = _best_us(model.predict, shapes)
        row[f"upper_{name}_us"] = _best_us(model.upper, shapes)
        settings = CoschedulerSettings(slo=SloSettings(ttft_slo_s=0.5, tpot_slo_s=0.05))
        row[f"decide_{name}_us"] = _best_us(
            lambda state, model=model, settings=settings: decide(state, model, settings),
            [_busy_snapshot(mixed) for mixed in (True, False)],
        )
    row["observe_us"] = _best_us(lambda s: from_profile.observe(s.shape, s.seconds), samples[:160])
    row["refit_us"] = _best_us(lambda _: from_profile.refit(), [None])
    return row


def _best_us(call: Callable[[Any], Any], arguments: Sequence[Any]) -> float:
    rounds = max(200 // len(arguments), 1)
    best_s = math.inf
    for _ in range(20):
        start_s = time.process_time()
        for _ in range(rounds):
            for argument in arguments:
                call(argument)
        best_s = min(best_s, time.process_time() - start_s)
    return 1e6 * best_s / (rounds * len(arguments))


def _busy_snapshot(mixed: bool) -> Snapshot:
    """24 online rows with little slack beside 16 offline candidates of 700 tokens each."""
    candidates = tuple(
        OfflineCandidate(rid=str(i), extend_tokens=700, prefix_tokens=0, max_new_tokens=16)
        for i in range(16)
    )
    return Snapshot(
        step=1,
        now_s=10.0,
        mixed=mixed,
        page_size=1,
        chunk_cap_tokens=2048,
        free_slots=64,
        memory=MemoryView(
            total_tokens=400_000, available_tokens=300_000, growth_tokens=0, reserve_tokens=1_000
        ),
        online=OnlineLoad(
            rows=24, kv_tokens=12_000, earliest_deadline_s=10.06, earliest_gap_s=10.15
        ),
        candidates=candidates,
        pooled=len(candidates),
    )


def text(parts: dict[str, pd.DataFrame]) -> str:
    """The parts for a terminal: medians over seeds, and the range of coverage."""
    held_out = parts["held_out"]
    keys = ["table", "batches", "regime"]
    numbers = [
        "samples", "p50_error", "p90_error", "p95_error", "p99_error", "signed_bias",
        "under_prediction_rate", "coverage",
    ]  # fmt: skip
    groups = held_out.groupby(keys, sort=False)
    shown = groups[numbers].median()
    shown["min_coverage"] = groups["coverage"].min()
    shown["max_coverage"] = groups["coverage"].max()
    blocks = [("held out (medians over seeds)", shown.reset_index())]
    blocks.append(("up to twice beyond the hull", parts["beyond"]))
    by_drift = parts["drift"].drop(columns="seed").groupby(["table", "drift"], sort=False)
    blocks.append(("drift (medians over seeds)", by_drift.median().reset_index()))
    blocks.append(("microseconds of CPU", parts["cost"].set_index("table").T.reset_index()))
    return "\n\n".join(
        f"{title}\n{table.to_string(index=False, float_format=lambda v: f'{v:.4g}')}"
        for title, table in blocks
    )
