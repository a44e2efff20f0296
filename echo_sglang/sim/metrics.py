"""What a run adds up to: online latency against its SLO, offline throughput, cache, waste."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from echo_sglang.sim.records import RequestRecord
from echo_sglang.sim.workload import Request, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Seconds to the first token, and on average to every further one."""

    ttft_s: float = 0.5
    tpot_s: float = 0.05

    def attained(self, record: RequestRecord) -> bool:
        """True if the request was answered whole and both bounds held."""
        if record.finish in (None, "abort") or record.ttft_s is None:
            return False
        return record.ttft_s <= self.ttft_s and (record.tpot_s or 0.0) <= self.tpot_s


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """One offline job. done: answered within the window. late: not answered by their deadlines.

    last_done_s: when the last of those done was; None without one.
    """

    requests: int
    done: int
    late: int
    last_done_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run in figures; None where there is nothing to measure.

    Offline figures count requests answered within the window; if the pool ran dry before its
    end (`pool_dry`), rates are per second until then. offline_hit_rate: share of their
    prompt tokens served from cache at first admission; online_hit_rate: the same of all online
    prompts. optimal_hit_rate: the same if every
    prefix they share were computed exactly once. preemptions_per_online: times that offline
    requests gave way, per online request. recomputed_tokens: prompt or output tokens that
    were computed again when they came back. limit_per_s, share_of_limit: see `PhysicalLimit`, None
    where the device is no roofline; the share is that of the requests that were answered.
    decide_*: real milliseconds of the scheduler's decision per iteration, on the machine that ran
    the emulation. offline_jobs: of every job that was named.
    """

    online_requests: int
    attainment: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p99_s: float | None
    max_gap_p99_s: float | None
    offline_requests: int
    offline_done: int
    offline_per_s: float | None
    offline_tokens_per_s: float | None
    limit_per_s: float | None
    share_of_limit: float | None
    online_hit_rate: float | None
    offline_hit_rate: float | None
    optimal_hit_rate: float | None
    recomputed_tokens: int
    preemptions: int
    preemptions_per_online: float | None
    pool_dry: bool
    iterations: int
    device_busy: float
    decide_p50_ms: float
    decide_p99_ms: float
    virtual_per_cpu_s: float
    batches_sha1: str
    offline_jobs: dict[str, JobSummary] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def summarise_requests(
    records: Iterable[RequestRecord], slo: Slo, window_s: float
) -> dict[str, Any]:
    """The fields of `Summary` that follow from what clients saw."""
    everybody = list(records)
    online = [r for r in everybody if not r.request.is_offline]
    offline = [r for r in everybody if r.request.is_offline]
    ttfts_s = [waited_s for r in online if (waited_s := r.waited_s) is not None]
    tpots_s = [r.tpot_s for r in online if r.tpot_s is not None]
    done = [r for r in offline if _done_within(r, window_s)]
    dry = bool(offline) and len(done) == len(offline)
    seconds = max((r.done_s or 0.0 for r in done), default=window_s) if dry else window_s
    prompts = sum(r.request.prompt_tokens for r in done)
    outputs = sum(r.received for r in done)
    preemptions = sum(r.preemptions for r in offline)
    return {
        "online_requests": len(online),
        "attainment": sum(map(slo.attained, online)) / len(online) if online else None,
        "ttft_p50_s": percentile(ttfts_s, 50),
        "ttft_p99_s": percentile(ttfts_s, 99),
        "tpot_p50_s": percentile(tpots_s, 50),
        "tpot_p99_s": percentile(tpots_s, 99),
        "max_gap_p99_s": percentile([r.max_gap_s for r in online], 99),
        "offline_requests": len(offline),
        "offline_done": len(done),
        "offline_per_s": len(done) / seconds if offline else None,
        "offline_tokens_per_s": (prompts + outputs) / seconds if offline else None,
        "online_hit_rate": _hit_rate(online),
        "offline_hit_rate": _hit_rate(done),
        "optimal_hit_rate": optimal_hit_rate([r.request for r in done]),
        "recomputed_tokens": sum(r.recomputed_tokens for r in offline),
        "preemptions": preemptions,
        "preemptions_per_online": preemptions / len(online) if online else None,
        "pool_dry": dry,
        "offline_jobs": _jobs(offline, window_s),
    }


def _jobs(offline: Sequence[RequestRecord], window_s: float) -> dict[str, JobSummary]:
    of_job: dict[str, list[RequestRecord]] = {}
    for record in offline:
        if record.request.job is not None:
            of_job.setdefault(record.request.job, []).append(record)
    return {job: _job_summary(records, window_s) for job, records in sorted(of_job.items())}


def _job_summary(records: Sequence[RequestRecord], window_s: float) -> JobSummary:
    done = [record for record in records if _done_within(record, window_s)]
    return JobSummary(
        requests=len(records),
        done=len(done),
        late=sum(
            not _done_within(r, r.request.deadline_s) for r in records if r.request.deadline_s
        ),
        last_done_s=max((record.done_s or 0.0 for record in done), default=None),
    )


def _hit_rate(records: Sequence[RequestRecord]) -> float | None:
    prompts = sum(r.request.prompt_tokens for r in records)
    return sum(r.cached_tokens for r in records) / prompts if prompts else None


def optimal_hit_rate(requests: Sequence[Request]) -> float | None:
    """Share of prompt tokens that need no computing if each prefix is computed once.

    The last token of every prompt is computed in any case: it samples the first answer.
    """
    total = sum(request.prompt_tokens for request in requests)
    if not total:
        return None
    seen: set[tuple[int, Segment]] = set()
    computed = 0
    for request in requests:
        path = fresh = 0
        for segment in request.prompt:
            key = (path, segment)
            if key not in seen:
                seen.add(key)
                fresh += segment.tokens
            path = hash(key)
        computed += max(fresh, 1)
    return 1.0 - computed / total


def done_within(records: Iterable[RequestRecord], window_s: float) -> list[str]:
    """Ids of the offline requests that were answered within the window."""
    return [r.request.rid for r in records if r.request.is_offline and _done_within(r, window_s)]


def percentile(values: Sequence[float], q: float) -> float | None:
    """The `q`-th percentile; None of nothing."""
    return float(np.percentile(values, q)) if values else None


def _done_within(record: RequestRecord, window_s: float) -> bool:
    return (
        record.finish not in (None, "abort")
        and record.done_s is not None
        and record.done_s <= window_s
    )
