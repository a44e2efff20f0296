"""Step traces for tests: records with a known cost, and their text."""

from __future__ import annotations

import json
import random

from echo_sglang.domain.step_record import ExtendSums, StepMode, StepRecord, TraceHeader

IDENTITY = {
    "hardware": "Test CPU, 2 cores",
    "model": "tiny",
    "sglang_version": "0.5.23",
    "dtype": "bfloat16",
    "tp_size": 1,
    "flags": ["attention_backend=echo_cpu"],
}
LIMITS = {"chunk_tokens": 512, "rows": 16, "kv_tokens": 8192, "context_tokens": 2048}


def header(**changes: object) -> TraceHeader:
    values = {"identity": IDENTITY, "limits": LIMITS, "started_unix_s": 1000.0, **changes}
    return TraceHeader(**values)  # type: ignore[arg-type]


def record(
    iteration: int,
    extends: tuple[tuple[int, int], ...] = (),
    *,
    rows: int = 0,
    kv_tokens: int = 0,
    seconds: float | None = None,
    **fields: object,
) -> StepRecord:
    """A record whose time is 10 ms + 1 ms a prompt token + 2 ms a row + 1 us a KV token."""
    sums = ExtendSums.of(extends)
    if seconds is None:
        seconds = 0.01 + 1e-3 * sums.tokens + 2e-3 * rows + 1e-6 * (kv_tokens + sums.pairs)
    if extends:
        mode = StepMode.MIXED if rows else StepMode.EXTEND
    else:
        mode = StepMode.DECODE if rows else StepMode.IDLE
    return StepRecord(
        iteration=iteration,
        mode=mode,
        ended_s=1e-4 * iteration,
        step_s=seconds,
        host_s=0.001,
        device_s=seconds - 0.001,
        extends=extends,
        sums=sums,
        decode_rows=rows,
        decode_kv_tokens=kv_tokens,
        **fields,  # type: ignore[arg-type]
    )


def load(num_iterations: int, seed: int = 1) -> list[StepRecord]:
    """Iterations of all modes, times with 5 % noise."""
    rng = random.Random(seed)
    found = []
    for iteration in range(1, num_iterations + 1):
        kind = rng.choice(("extend", "decode", "mixed"))
        extends: tuple[tuple[int, int], ...] = ()
        rows = kv_tokens = 0
        if kind != "decode":
            extends = tuple(
                (rng.randint(1, 200), rng.randint(0, 1500)) for _ in range(rng.randint(1, 3))
            )
        if kind != "extend":
            rows = rng.randint(1, 16)
            kv_tokens = rows * rng.randint(10, 900)
        exact = record(iteration, extends, rows=rows, kv_tokens=kv_tokens)
        seconds = exact.step_s * rng.lognormvariate(0.0, 0.05)
        found.append(record(iteration, extends, rows=rows, kv_tokens=kv_tokens, seconds=seconds))
    return found


def lines(records: list[StepRecord], **changes: object) -> list[str]:
    """The lines of one trace file, newlines kept."""
    values = [header(**changes).to_json_values(), *(one.to_row() for one in records)]
    return [json.dumps(value) + "\n" for value in values]
