"""What the forecast of online KV demand is told of SGLang's requests."""

from __future__ import annotations

from statistics import fmean

from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH, Req, ScheduleBatch

from echo_sglang.adapter.requests import EchoReq, is_offline
from echo_sglang.config import EchoConfig
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.estimate.adaptive_reserve import AdaptiveReserve
from echo_sglang.estimate.kv_demand import (
    FixedReserve,
    KvDemandForecast,
    OnlineRow,
    RunningOnline,
)
from echo_sglang.estimate.output_length import OutputLengths

RESERVE_WINDOW_S = 900.0
"""How much of the past the forecast of the burst reserve looks at."""


def reserve_of(config: EchoConfig, pool_tokens: int, lengths: OutputLengths) -> KvDemandForecast:
    """The burst reserve that the configuration asks for in a pool of this size."""
    floor, ceiling = config.reserve_limits(pool_tokens)
    if floor == ceiling:
        return FixedReserve(floor)
    return AdaptiveReserve(
        lengths=lengths.table(ServiceClass.ONLINE),
        horizon_s=config.reserve_horizon_s,
        window_s=max(RESERVE_WINDOW_S, config.reserve_horizon_s),
        violation_rate=1.0 - config.reserve_quantile,
        floor_tokens=floor,
        ceiling_tokens=ceiling,
    )


def running_online(batch: ScheduleBatch) -> RunningOnline:
    """The online rows of the batch, and the mean time per token that they had so far."""
    rows: list[OnlineRow] = []
    paces_s: list[float] = []
    for req in batch.reqs:
        if req.finished() or is_offline(req):
            continue
        max_new_tokens = req.sampling_params.max_new_tokens
        rows.append(OnlineRow(req.seqlen, len(req.output_ids), max_new_tokens))
        progress = req.progress if isinstance(req, EchoReq) else None
        if progress is not None and progress.tpot_s is not None:
            paces_s.append(progress.tpot_s)
    return RunningOnline(fmean(paces_s) if paces_s else 0.0, rows)


def note_length(lengths: OutputLengths, req: Req) -> None:
    """Learn from a finished request; one that was stopped would have gone on."""
    service_class = ServiceClass.OFFLINE if is_offline(req) else ServiceClass.ONLINE
    stopped = isinstance(req.finished_reason, FINISH_LENGTH | FINISH_ABORT)
    lengths.observe(service_class, len(req.output_ids), cut_off=stopped)
