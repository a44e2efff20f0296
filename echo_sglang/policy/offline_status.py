"""What can be said of waiting offline work: when it will be done, and who is served how much."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from echo_sglang.policy.deadlines import Outlook
from echo_sglang.policy.jobs import NO_JOB, Job
from echo_sglang.policy.offline_pool import OfflinePool

SHOWN_JOBS = 32
SHOWN_DEADLINES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineProspects:
    """When offline work will be done. work_per_s: None while unknown."""

    now_s: float
    jobs_waiting: int
    work_per_s: float | None
    outlook: tuple[Outlook, ...]

    @property
    def least_laxity_s(self) -> float | None:
        """Of the tightest deadline; None without one, or while no pace is known."""
        return min((o.laxity_s for o in self.outlook if o.laxity_s is not None), default=None)

    @property
    def late_requests(self) -> int:
        """Waiting requests predicted to miss their deadlines."""
        return sum(outlook.late_requests for outlook in self.outlook)


def prospects_of(pool: OfflinePool, now_s: float) -> OfflineProspects:
    """O(deadline classes)."""
    return OfflineProspects(
        now_s=now_s,
        jobs_waiting=pool.shares.num_waiting,
        work_per_s=pool.pace.work_per_s,
        outlook=pool.outlook(now_s),
    )


def offline_status(pool: OfflinePool, now_s: float) -> dict[str, Any]:
    """Plain JSON values, times as seconds from now. O(jobs), so only when somebody asks."""
    prospects = prospects_of(pool, now_s)
    by_due = {outlook.due_s: outlook for outlook in prospects.outlook}
    jobs = list(pool.shares.jobs())
    recent = sum(job.recent_tokens(now_s) for job in jobs)
    weights = sum(job.weight for job in jobs if job.waiting or job.running)
    shown = heapq.nlargest(
        SHOWN_JOBS, jobs, key=lambda job: (job.recent_tokens(now_s), job.waiting, -job.order)
    )
    return {
        "work_tokens_per_s": prospects.work_per_s,
        "least_laxity_s": prospects.least_laxity_s,
        "late_requests": prospects.late_requests,
        "deadlines": [_deadline(o, now_s) for o in prospects.outlook[:SHOWN_DEADLINES]],
        "num_jobs": len(jobs),
        "jobs": [_job(job, now_s, recent, weights, by_due) for job in shown],
    }


def _deadline(outlook: Outlook, now_s: float) -> dict[str, Any]:
    return {
        "due_in_s": outlook.due_s - now_s,
        "requests": outlook.requests,
        "work_tokens": outlook.work,
        "finish_in_s": _from_now(outlook.finish_s, now_s),
        "laxity_s": outlook.laxity_s,
        "feasible": outlook.late_requests == 0,
        "late_requests": outlook.late_requests,
        "goes_first": outlook.urgent,
    }


def _job(
    job: Job, now_s: float, recent: float, weights: float, by_due: Mapping[float, Outlook]
) -> dict[str, Any]:
    outlook = None if job.due_s is None else by_due.get(job.due_s)
    wants = bool(job.waiting or job.running)
    return {
        "job": None if job.name == NO_JOB else job.name,
        "weight": job.weight,
        "waiting": job.waiting,
        "running": job.running,
        "fair_share": job.weight / weights if wants else 0.0,
        "share_last_minute": job.recent_tokens(now_s) / recent if recent > 0.0 else None,
        "computed_tokens": job.computed_tokens,
        "cached_tokens": job.cached_tokens,
        "output_tokens": job.output_tokens,
        "due_in_s": _from_now(job.due_s, now_s),
        "finish_in_s": None if outlook is None else _from_now(outlook.finish_s, now_s),
    }


def _from_now(at_s: float | None, now_s: float) -> float | None:
    return None if at_s is None else at_s - now_s
