"""Answers a deployer's questions by emulation: does it hold, what can be harvested, at what cost.

Every answer is a set of runs, which `kept_runs` keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from echo_sglang.errors import ConfigError
from echo_sglang.sim.kept_runs import Execute
from echo_sglang.sim.limit import least_seconds
from echo_sglang.sim.plan_answer import Answer, Latency, WindowAnswer, batch_seconds, by_hour
from echo_sglang.sim.plan_question import MARGIN, Question, check_workload, roofline_of
from echo_sglang.sim.spec import RunSpec

MAX_REPLICAS = 1024


class Progress(Protocol):
    """Is told how far a plan has come."""

    def begin(self, what: str, runs: int) -> None:
        """The next `runs` runs are for `what`."""

    def advance(self) -> None:
        """One run is there."""


class Unseen:
    """Progress that nobody looks at."""

    def begin(self, what: str, runs: int) -> None:
        """Nothing."""

    def advance(self) -> None:
        """Nothing."""


def plan(
    question: Question, execute: Execute, progress: Progress | None = None, *, at_once: int = 1
) -> Answer:
    """Answer `question`. at_once: runs that `execute` makes at the same time.

    Raises WorkloadError or ConfigError before anything runs, or if no fleet holds the SLO.
    """
    check_workload(question)
    planner = _Planner(question, execute, progress or Unseen(), at_once)
    busiest_s = planner.busiest()
    alone, replicas = planner.fleet(busiest_s)
    pairs = [(start_s, MARGIN) for start_s in question.starts_s]
    pairs += [(busiest_s, margin) for margin in question.margins if margin != MARGIN]
    answers = planner.windows(pairs, replicas)
    windows = tuple(answers[: len(question.starts_s)])
    trade_off = (*answers[len(windows) :], windows[question.starts_s.index(busiest_s)])
    hours = by_hour(question, windows)
    lines = question.batch_lines
    batch_s = None if lines is None else batch_seconds(lines, hours)
    return Answer(
        replicas_alone=alone,
        replicas=replicas,
        holds=all(w.holds(question.attained) for w in windows),
        hours=hours,
        windows=windows,
        trade_off=tuple(sorted(trade_off, key=lambda w: w.margin)),
        batch_s=batch_s,
        batch_fits=None if batch_s is None else batch_s <= question.batch_window_s,
    )


class _Planner:
    """One question and the means to answer it."""

    def __init__(
        self, question: Question, execute: Execute, progress: Progress, at_once: int
    ) -> None:
        self._question = question
        self._execute = execute
        self._progress = progress
        self._at_once = max(at_once, 1)

    def busiest(self) -> float:
        """The start of the window in which most tokens are asked for."""

        def tokens(start_s: float) -> int:
            requests = self._question.online_requests(start_s)
            return sum(r.prompt_tokens + r.output_tokens for r in requests)

        return max(self._question.starts_s, key=tokens)

    def fleet(self, busiest_s: float) -> tuple[int | None, int]:
        """Fewest servers for the busiest window: of online requests alone, and with offline
        work beside. If twice as many do not make up for the offline work, nothing does."""
        question = self._question
        if question.replicas is not None:
            return None, question.replicas
        least = self._least_replicas(busiest_s)
        alone = self._fewest(busiest_s, None, least - 1, MAX_REPLICAS)
        if alone is None:
            raise ConfigError(
                f"not even {MAX_REPLICAS} replicas hold the SLO for {100 * question.attained:g} % "
                "of online requests: single requests are too long for it; relax it or take faster "
                "hardware"
            )
        both = self._fewest(busiest_s, MARGIN, alone - 1, 2 * alone)
        return alone, both or alone

    def windows(self, pairs: Sequence[tuple[float, float]], replicas: int) -> list[WindowAnswer]:
        """One answer for every (start, margin)."""
        question = self._question
        counts = {s: len(question.online_requests(s, replicas)) for s, _ in pairs}
        starts_s = [start_s for start_s, count in counts.items() if count]
        specs = [question.spec(start_s, replicas, None) for start_s in starts_s]
        specs += [question.spec(start_s, replicas, margin) for start_s, margin in pairs]
        found = list(self._summaries(f"windows on {replicas} replica(s)", specs))
        alone = dict(zip(starts_s, map(Latency.of, found), strict=False))
        return [
            WindowAnswer(
                start_s=start_s,
                replicas=replicas,
                margin=margin,
                online_requests=counts[start_s],
                alone=alone.get(start_s, Latency()),
                beside=Latency.of(summary),
                harvested_per_s=replicas * summary["offline_per_s"],
                harvested_tokens_per_s=replicas * summary["offline_tokens_per_s"],
                hit_rate=summary["offline_hit_rate"],
                share_of_limit=summary["share_of_limit"],
                pool_dry=summary["pool_dry"],
            )
            for (start_s, margin), summary in zip(pairs, found[len(starts_s) :], strict=True)
        ]

    def _least_replicas(self, start_s: float) -> int:
        """Fewer have not the device time, whatever the scheduler does."""
        question = self._question
        device = roofline_of(question.device)
        if device is None:
            return 1
        busy_s = least_seconds(question.online_requests(start_s), device)
        return max(math.ceil(question.attained * busy_s / question.window_s), 1)

    def _fewest(self, start_s: float, margin: float | None, low: int, most: int) -> int | None:
        """Fewest of low + 1 to `most` servers on which the window attains enough, None if none.

        Several are tried at once: doubling until one holds, then what lies between.
        """
        work = "online alone" if margin is None else "with offline work"
        rising = _doubled(low + 1, most)
        high: int | None = None
        while high is None or high - low > 1:
            if high is None:
                tried, rising = rising[: self._at_once], rising[self._at_once :]
            else:
                tried = _between(low, high, self._at_once)
            if not tried:
                return None
            holds = self._hold(f"{work}, {_listed(tried)} replica(s)", start_s, margin, tried)
            high = min((c for c in tried if holds[c]), default=high)
            low = max((c for c in tried if not holds[c] and c < (high or c + 1)), default=low)
        return high

    def _hold(
        self, what: str, start_s: float, margin: float | None, counts: Sequence[int]
    ) -> dict[int, bool]:
        specs = [self._question.spec(start_s, count, margin) for count in counts]
        shares = (summary["attainment"] for summary in self._summaries(what, specs))
        least = self._question.attained
        return {c: s is None or s >= least for c, s in zip(counts, shares, strict=True)}

    def _summaries(self, what: str, specs: Sequence[RunSpec]) -> Iterator[dict[str, Any]]:
        self._progress.begin(what, len(specs))
        for result in self._execute(specs):
            self._progress.advance()
            yield result["summary"]


def _doubled(first: int, most: int) -> list[int]:
    """`first`, twice as many and so on, `most` at the end."""
    counts = []
    while first < most:
        counts.append(first)
        first *= 2
    return [*counts, most]


def _between(low: int, high: int, count: int) -> list[int]:
    """At most `count` numbers above `low` and below `high`, evenly apart."""
    steps = (low + round((high - low) * i / (count + 1)) for i in range(1, count + 1))
    return sorted({min(max(step, low + 1), high - 1) for step in steps})


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))
