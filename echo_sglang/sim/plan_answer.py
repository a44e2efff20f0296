"""What the planner answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from echo_sglang.sim.plan_question import HOUR_S, Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """What online users saw in one window; None where nobody came."""

    attained: float | None = None
    ttft_p50_s: float | None = None
    ttft_p99_s: float | None = None
    tpot_p50_s: float | None = None
    tpot_p99_s: float | None = None

    @property
    def missed(self) -> float | None:
        """Share of requests whose SLO was not met."""
        return None if self.attained is None else 1.0 - self.attained

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Latency:
        """The online part of a run's summary."""
        return cls(
            attained=summary["attainment"],
            ttft_p50_s=summary["ttft_p50_s"],
            ttft_p99_s=summary["ttft_p99_s"],
            tpot_p50_s=summary["tpot_p50_s"],
            tpot_p99_s=summary["tpot_p99_s"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowAnswer:
    """One window: online alone against online beside offline work, on `replicas` servers.

    margin: share of the SLO that Echo planned with. online_requests: of one replica.
    harvested_*: of all replicas together. pool_dry: all offline work was done before the end.
    """

    start_s: float
    replicas: int
    margin: float
    online_requests: int
    alone: Latency
    beside: Latency
    harvested_per_s: float
    harvested_tokens_per_s: float
    hit_rate: float | None
    share_of_limit: float | None
    pool_dry: bool

    def holds(self, attained: float) -> bool:
        """True if enough online requests met their SLO, or if there were none."""
        return self.beside.attained is None or self.beside.attained >= attained


@dataclass(frozen=True, slots=True, kw_only=True)
class HourAnswer:
    """One hour of the online traffic, from the windows in it.

    seconds: how much of the hour the traffic covers. attained: of its windows the worst.
    """

    hour: int
    seconds: float
    windows: int
    online_per_s: float
    attained: float | None
    harvested_per_s: float
    harvested_tokens_per_s: float

    @property
    def harvested_tokens(self) -> float:
        """Offline tokens that this hour gives."""
        return self.harvested_tokens_per_s * self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The plan.

    replicas_alone: servers that online traffic alone needs, None if their number was given.
    replicas: with the offline work beside. trade_off: the busiest window with other margins.
    batch_s: seconds for the whole batch, None if it was not asked for.
    """

    replicas_alone: int | None
    replicas: int
    holds: bool
    hours: tuple[HourAnswer, ...]
    windows: tuple[WindowAnswer, ...]
    trade_off: tuple[WindowAnswer, ...]
    batch_s: float | None = None
    batch_fits: bool | None = None

    @property
    def harvested_tokens_per_hour(self) -> float:
        """Mean over the traffic."""
        seconds = sum(hour.seconds for hour in self.hours)
        return HOUR_S * sum(hour.harvested_tokens for hour in self.hours) / seconds

    def to_json(self) -> dict[str, Any]:
        """JSON values; a batch that never ends has no `batch_s`."""
        values = asdict(self)
        values["harvested_tokens_per_hour"] = self.harvested_tokens_per_hour
        if self.batch_s is not None and math.isinf(self.batch_s):
            values["batch_s"] = None
        return values


def by_hour(question: Question, windows: Sequence[WindowAnswer]) -> tuple[HourAnswer, ...]:
    """The windows summed up by the hour of the traffic that their middle is in."""
    hours: dict[int, list[WindowAnswer]] = {}
    for window in windows:
        hour = int((window.start_s + question.window_s / 2) // HOUR_S)
        hours.setdefault(hour, []).append(window)
    return tuple(_hour(question, hour, hours[hour]) for hour in sorted(hours))


def _hour(question: Question, hour: int, windows: Sequence[WindowAnswer]) -> HourAnswer:
    count = len(windows)
    left_s = math.inf if question.length_s is None else question.length_s - hour * HOUR_S
    attained = [w.beside.attained for w in windows if w.beside.attained is not None]
    requests = sum(w.online_requests * w.replicas for w in windows)
    return HourAnswer(
        hour=hour,
        seconds=min(HOUR_S, max(left_s, question.window_s)),
        windows=count,
        online_per_s=requests / (count * question.window_s),
        attained=min(attained, default=None),
        harvested_per_s=sum(w.harvested_per_s for w in windows) / count,
        harvested_tokens_per_s=sum(w.harvested_tokens_per_s for w in windows) / count,
    )


def batch_seconds(lines: int, hours: Sequence[HourAnswer]) -> float:
    """How long `lines` take from the first hour on; after the last one it begins anew."""
    a_round = sum(hour.harvested_per_s * hour.seconds for hour in hours)
    if a_round <= 0.0:
        return math.inf
    rounds, left = divmod(lines, a_round)
    passed_s = rounds * sum(hour.seconds for hour in hours)
    for hour in hours:
        done = hour.harvested_per_s * hour.seconds
        if left <= done:
            return passed_s + (left / hour.harvested_per_s if left else 0.0)
        left -= done
        passed_s += hour.seconds
    return passed_s


def pareto(points: Iterable[WindowAnswer]) -> tuple[WindowAnswer, ...]:
    """Those that no other beats in throughput, TTFT p99 and TPOT p99 together."""
    everything = tuple(points)
    return tuple(p for p in everything if not any(_beats(q, p) for q in everything))


def _beats(one: WindowAnswer, other: WindowAnswer) -> bool:
    mine, others = _goals(one), _goals(other)
    return mine != others and all(a >= b for a, b in zip(mine, others, strict=True))


def _goals(point: WindowAnswer) -> tuple[float, float, float]:
    beside = point.beside
    return (
        point.harvested_tokens_per_s,
        -(beside.ttft_p99_s or 0.0),
        -(beside.tpot_p99_s or 0.0),
    )
