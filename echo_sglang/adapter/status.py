"""The JSON behind GET /echo/status, built in the scheduler process."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.runtime_context import get_parallel

from echo_sglang.adapter.identity import server_limits
from echo_sglang.adapter.kv_space import kv_space
from echo_sglang.adapter.requests import is_offline
from echo_sglang.estimate.idle_rates import idle_rates
from echo_sglang.policy.offline_status import offline_status

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler

LAST_DECISIONS = 20


def build_status(scheduler: EchoScheduler) -> dict[str, Any]:
    """Plain JSON values only; O(running rows)."""
    finished, attained = scheduler.attainment.counts(scheduler.echo_clock())
    slo = scheduler.echo_settings.slo
    return {
        "enabled": True,
        "parallel": _parallel(scheduler),
        "slo": {"ttft_ms": 1e3 * slo.ttft_slo_s, "tpot_ms": 1e3 * slo.tpot_slo_s},
        "attainment_last_minute": {
            "finished": finished,
            "attained": attained,
            "share": None if finished == 0 else attained / finished,
        },
        "requests": _requests(scheduler),
        "offline": {
            **offline_status(scheduler.offline_queue.pool, scheduler.echo_clock()),
            "idle_server": _idle_server(scheduler),
            "most_preemptions": scheduler.most_preemptions,
        },
        "memory_tokens": _memory(scheduler),
        "step_time_model": _model(scheduler),
        "step_trace": None if scheduler.step_tracer is None else scheduler.step_tracer.status(),
        "limits": server_limits(scheduler),
        "steps": scheduler.step_timer.num_launched,
        "reasons": dict(scheduler.decision_log.reasons),
        "counters": dict(scheduler.echo_counters),
        "last_decisions": scheduler.decision_log.last(LAST_DECISIONS),
    }


def _idle_server(scheduler: EchoScheduler) -> dict[str, float] | None:
    limits = server_limits(scheduler)
    rates = idle_rates(
        scheduler.fitter.model,
        chunk_tokens=limits["chunk_tokens"],
        rows=limits["rows"],
        kv_tokens=limits["kv_tokens"],
    )
    return None if rates is None else asdict(rates)


def _parallel(scheduler: EchoScheduler) -> dict[str, int]:
    parallel = get_parallel()
    return {
        "replica": int(parallel.dp_rank or 0),
        "replicas": int(parallel.dp_size),
        "ranks": scheduler.ranks.size,
    }


def _requests(scheduler: EchoScheduler) -> dict[str, int]:
    offline_running = sum(is_offline(req) for req in _running(scheduler))
    return {
        "online_running": len(_running(scheduler)) - offline_running,
        "online_waiting": len(scheduler.waiting_queue),
        "offline_running": offline_running,
        "offline_pooled": len(scheduler.offline_queue) + len(scheduler.offline_lane),
        "offline_parked": scheduler.offline_queue.pool.num_parked,
    }


def _memory(scheduler: EchoScheduler) -> dict[str, int]:
    free, cached = kv_space(scheduler)
    total = scheduler.max_total_num_tokens
    online = sum(_own_tokens(req) for req in _running(scheduler) if not is_offline(req))
    return {
        "total": total,
        "free": free,
        "cached": cached,
        "locked": total - free - cached,
        "locked_by_online": online,
        "locked_by_offline_or_shared": max(total - free - cached - online, 0),
        "reserved_for_online": scheduler.reserve.reserve_tokens(scheduler.echo_clock()),
        "protected_online": _protected(scheduler),
    }


def _protected(scheduler: EchoScheduler) -> int:
    core = scheduler.echo_core
    return 0 if core is None else core.policy.protected_tokens()


def _model(scheduler: EchoScheduler) -> dict[str, Any]:
    model, status = scheduler.fitter.model, scheduler.fitter.status()
    return {
        "trained": model.trained,
        "samples": model.samples,
        "profile": None if scheduler.server_profile is None else scheduler.server_profile.state,
        "safe_mode": status.safe_mode,
        "drift_ratio": status.drift_ratio,
        "median_abs_error": scheduler.fitter.median_abs_error(),
        "largest_extend_tokens": model.largest_extend_tokens,
        "regimes": {report.regime: asdict(report) for report in status.regimes},
    }


def _running(scheduler: EchoScheduler) -> list[Req]:
    alive = [req for req in scheduler.running_batch.reqs if not req.finished()]
    last = scheduler.last_batch
    seen = {req.rid for req in alive}
    if last is not None:
        alive.extend(r for r in last.reqs if not r.finished() and r.rid not in seen)
    return alive


def _own_tokens(req: Req) -> int:
    return max(req.seqlen - req.kv.cache_protected_len, 0)
