"""Online KV over time, simulated from request traces (arrival times and lengths, no text).

Assumptions: a request is admitted in the first iteration after its arrival, no prefix is shared,
nothing queues and nothing is preempted. From then on it holds its prompt and one token more every
iteration (a constant time per output token); all of it is freed after its last token. The traces
do not say `max_new_tokens`: MAX_NEW_TOKENS for all. Iterations run on when nobody is online, as
they do while offline work runs.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d

from echo_sglang.errors import WorkloadError
from echo_sglang.estimate.kv_demand import OnlineRow, RunningOnline

MAX_NEW_TOKENS = 16_384
"""Above the longest output of all traces, so that it tells nothing."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in order of arrival: seconds since the first, prompt and output tokens."""

    arrival_s: NDArray[np.float64]
    prompt_tokens: Ints
    output_tokens: Ints


def load_azure(path: Path) -> Trace:
    """An Azure LLM inference trace of 2023 (CSV). Raises WorkloadError if it cannot be read."""

    def requests(text: str) -> Iterator[tuple[float, int, int]]:
        for row in csv.DictReader(text.splitlines()):
            yield (
                _seconds(row["TIMESTAMP"]), int(row["ContextTokens"]), int(row["GeneratedTokens"])
            )  # fmt: skip

    return _load(path, "an Azure 2023 trace", requests)


def load_mooncake(path: Path) -> Trace:
    """A Mooncake trace (JSON lines). Raises WorkloadError if it cannot be read."""

    def requests(text: str) -> Iterator[tuple[float, int, int]]:
        for row in map(json.loads, text.splitlines()):
            yield row["timestamp"] / 1e3, int(row["input_length"]), int(row["output_length"])

    return _load(path, "a Mooncake trace", requests)


def _load(
    path: Path, kind: str, requests: Callable[[str], Iterator[tuple[float, int, int]]]
) -> Trace:
    if not path.is_file():
        raise WorkloadError(f"{path.name} is not in {path.parent.name}/; say where by --data")
    try:
        rows = sorted(requests(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise WorkloadError(f"{path.name} is not {kind}: {error!r}") from error
    if not rows:
        raise WorkloadError(f"{path.name} holds no request")
    times, prompts, outputs = zip(*rows, strict=True)
    return Trace(
        arrival_s=np.array(times) - times[0],
        prompt_tokens=np.array(prompts),
        output_tokens=np.maximum(np.array(outputs), 1),
    )


def _seconds(text: str) -> float:
    """Of a time stamp with seven decimals, one more than datetime reads."""
    moment, _, fraction = text.partition(".")
    return datetime.fromisoformat(moment).timestamp() + float(f"0.{fraction or 0}")


class Occupancy:
    """The iterations of a trace: online KV after each, and who runs."""

    def __init__(self, trace: Trace, tpot_s: float) -> None:
        self.tpot_s = tpot_s
        self.prompt_tokens = trace.prompt_tokens
        self.output_tokens = trace.output_tokens
        self.begin = np.ceil(trace.arrival_s / tpot_s).astype(np.int64)
        self.end = self.begin + trace.output_tokens
        """First iteration without the request."""
        change = np.zeros(int(self.end.max()) + 2, dtype=np.int64)
        steps = np.zeros_like(change)
        np.add.at(change, self.begin, trace.prompt_tokens + 1)
        np.add.at(change, self.end, -(trace.prompt_tokens + trace.output_tokens))
        np.add.at(steps, self.begin + 1, 1)
        np.add.at(steps, self.end, -1)
        kv = np.cumsum(change + np.cumsum(steps))
        self.kv_tokens: Ints = kv[: int(self.begin.max()) + 1]

    def __len__(self) -> int:
        return len(self.kv_tokens)

    def increments(self, horizon_s: float) -> Ints:
        """What `estimate.increments` defines, at every iteration whose horizon ends in time."""
        steps = round(horizon_s / self.tpot_s)
        ahead = maximum_filter1d(self.kv_tokens, steps, origin=-(steps // 2), mode="nearest")
        known = len(self) - steps
        return np.maximum(ahead[1 : known + 1] - self.kv_tokens[:known], 0)

    def play(self) -> Iterator[tuple[int, list[int], list[int]]]:
        """(iteration, requests that run, requests that just ended), in order."""
        running: list[int] = []
        arriving = 0
        for step in range(len(self)):
            while arriving < len(self.begin) and self.begin[arriving] <= step:
                running.append(arriving)
                arriving += 1
            ended = [each for each in running if self.end[each] <= step]
            if ended:
                running = [each for each in running if self.end[each] > step]
            yield step, running, ended

    def rows(self, step: int, running: Sequence[int]) -> RunningOnline:
        """What the scheduler would tell of the running requests."""
        produced = [step - int(self.begin[each]) + 1 for each in running]
        return RunningOnline(
            self.tpot_s,
            [
                OnlineRow(int(self.prompt_tokens[each]) + done, done, MAX_NEW_TOKENS)
                for each, done in zip(running, produced, strict=True)
            ],
        )
