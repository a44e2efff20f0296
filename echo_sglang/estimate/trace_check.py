"""Checks a step trace against SGLang's forward pass metrics of the same run.

Two witnesses of the same iterations: ours counts at launch, SGLang's when a result was
processed. SGLang's has no iteration number and may have begun later, so both are first
laid side by side where most iterations look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from echo_sglang.domain.step_record import StepRecord

MIN_TIME_TOLERANCE_S = 0.002
TIME_TOLERANCE = 0.1
MAX_SHOWN = 20
MAX_VOTES = 2000
"""Iterations of an unbroken run that are looked at to find its place in the trace."""

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardPass:
    """One iteration as SGLang's forward pass metrics tell it.

    sequence: counts every message of the publisher. seconds: time on the device.
    """

    sequence: int
    seconds: float
    extend_rows: int
    extend_tokens: int
    prefix_tokens: int
    decode_rows: int
    decode_kv_tokens: int

    @property
    def is_heartbeat(self) -> bool:
        """True for what an idle server sends each second."""
        return self.seconds == 0.0 and self.extend_tokens == 0 and self.decode_rows == 0


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One value of one iteration on which the two do not agree."""

    iteration: int
    name: str
    trace: float
    forward_pass: float


@dataclass(frozen=True, slots=True)
class TraceCheck:
    """What came of the comparison.

    compared: iterations both tell of. only_trace, only_forward_pass: iterations between the
    first and last compared one that the other lacks. counts: disagreements by name.
    shown: the first few of them. device_time_ratio: median of our device time over
    SGLang's, None if nothing was compared.
    """

    compared: int
    only_trace: int
    only_forward_pass: int
    counts: dict[str, int]
    shown: tuple[Disagreement, ...]
    device_time_ratio: float | None

    @property
    def agrees(self) -> bool:
        """True if something was compared and no value differed."""
        return self.compared > 0 and not self.counts and not self.only_forward_pass


def check_trace(records: Sequence[StepRecord], passes: Sequence[ForwardPass]) -> TraceCheck:
    """Compare tokens, rows, KV and device time, iteration by iteration.

    records: of one trace, in order; of several runs the last counts. passes: all messages
    received meanwhile, heartbeats too. Row and token counts must be equal. SGLang counts
    the KV of decode rows after their new token was appended, we before: one token a row may
    lie between. Device times may differ by a tenth, or by two milliseconds.
    """
    ours = _last_run(records)
    pairs, lone = _aligned(ours, passes)
    counts: dict[str, int] = {}
    shown: list[Disagreement] = []
    for record, seen in pairs:
        for name, mine, theirs, allowed in _comparisons(record, seen):
            if abs(mine - theirs) > allowed:
                counts[name] = counts.get(name, 0) + 1
                if len(shown) < MAX_SHOWN:
                    shown.append(Disagreement(record.iteration, name, mine, theirs))
    ratios = [record.device_s / seen.seconds for record, seen in pairs if seen.seconds > 0]
    span = pairs[-1][0].iteration - pairs[0][0].iteration + 1 if pairs else 0
    return TraceCheck(
        compared=len(pairs),
        only_trace=span - len(pairs),
        only_forward_pass=lone,
        counts=counts,
        shown=tuple(shown),
        device_time_ratio=float(np.median(ratios)) if ratios else None,
    )


def _last_run(records: Sequence[StepRecord]) -> Sequence[StepRecord]:
    """The records after the last fall of the iteration number: those of the newest server."""
    for index in range(len(records) - 1, 0, -1):
        if records[index].iteration <= records[index - 1].iteration:
            return records[index:]
    return records


def _aligned(
    records: Sequence[StepRecord], passes: Sequence[ForwardPass]
) -> tuple[list[tuple[StepRecord, ForwardPass]], int]:
    """Records with the passes that tell of the same iterations, and the number of passes
    within the trace that no record belongs to."""
    if not records:
        return [], 0
    first, last = records[0].iteration, records[-1].iteration
    by_iteration = {record.iteration: record for record in records}
    codes = np.full(last - first + 1, -1, dtype=np.int64)
    for record in records:
        codes[record.iteration - first] = _code(
            record.sums.rows, record.sums.tokens, record.decode_rows
        )
    pairs: list[tuple[StepRecord, ForwardPass]] = []
    lone = 0
    start = 0
    for run in _unbroken(passes):
        seen = np.array([_code(p.extend_rows, p.extend_tokens, p.decode_rows) for p in run])
        place = _best_place(codes, seen, start)
        if place is None:
            lone += len(run)
            continue
        for iteration, one in enumerate(run, start=first + place):
            mine = by_iteration.get(iteration)
            if mine is not None:
                pairs.append((mine, one))
            elif iteration <= last:
                lone += 1
        start = place + len(run)
    return pairs, lone


def _unbroken(passes: Sequence[ForwardPass]) -> list[list[ForwardPass]]:
    """Runs of passes of which no message between was lost; heartbeats are left out."""
    runs: list[list[ForwardPass]] = []
    expected = None
    for one in passes:
        if one.sequence != expected:
            runs.append([])
        expected = one.sequence + 1
        if not one.is_heartbeat:
            runs[-1].append(one)
    return [run for run in runs if run]


def _best_place(codes: Codes, seen: Codes, start: int) -> int | None:
    """Where in `codes`, not before `start`, most of `seen` is found; None if less than half."""
    best, place = 0.5, None
    for offset in range(start, len(codes)):
        window = codes[offset : offset + min(len(seen), MAX_VOTES)]
        share = (
            float(np.mean(window == seen[: len(window)])) * len(window) / min(len(seen), MAX_VOTES)
        )
        if share > best:
            best, place = share, offset
        if share == 1.0:
            break
    return place


def _code(rows: int, tokens: int, decode_rows: int) -> int:
    """One number for what an iteration computed."""
    return (tokens << 40) | (rows << 20) | decode_rows


def _comparisons(
    record: StepRecord, seen: ForwardPass
) -> tuple[tuple[str, float, float, float], ...]:
    """(name, ours, theirs, allowed difference)."""
    allowed_s = max(MIN_TIME_TOLERANCE_S, TIME_TOLERANCE * record.device_s)
    return (
        ("extend_rows", record.sums.rows, seen.extend_rows, 0),
        ("extend_tokens", record.sums.tokens, seen.extend_tokens, 0),
        ("prefix_tokens", record.sums.prefix_tokens, seen.prefix_tokens, 0),
        ("decode_rows", record.decode_rows, seen.decode_rows, 0),
        ("decode_kv_tokens", record.decode_kv_tokens, seen.decode_kv_tokens, record.decode_rows),
        ("device_s", record.device_s, seen.seconds, allowed_s),
    )
