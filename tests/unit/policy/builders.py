"""Short ways to write snapshots and models whose arithmetic a reader can follow."""

from __future__ import annotations

from typing import Any

from echo_sglang.domain.snapshot import (
    MemoryView,
    OfflineCandidate,
    OfflineRow,
    OfflineRows,
    OnlineLoad,
    Snapshot,
    WaitingOnline,
)
from echo_sglang.estimate.step_time import StepTimeModel
from echo_sglang.policy.settings import CoschedulerSettings
from echo_sglang.policy.slack import SloSettings

SETTINGS = CoschedulerSettings(
    slo=SloSettings(ttft_slo_s=2.0, tpot_slo_s=0.3, ttft_margin=1.0, tpot_margin=1.0)
)

MODEL = StepTimeModel(
    # 10 ms an iteration, 1 ms a prompt token, 5 ms a decode row; nothing else.
    weights_s=(0.010, 0.0, 0.001, 0.0, 0.0, 0.0, 0.0, 0.0, 0.005, 0.0, 0.0, 0.0, 0.0),
    extend_log_factor=0.0,
    decode_log_factor=0.0,
    largest_extend_tokens=4096,
    samples=1000,
)


def snapshot(**changes: Any) -> Snapshot:
    """An idle server: 10,000 KV tokens, 16 slots, mixed chunks of at most 512."""
    fields: dict[str, Any] = {
        "step": 100,
        "now_s": 10.0,
        "mixed": True,
        "page_size": 1,
        "chunk_cap_tokens": 512,
        "free_slots": 16,
        "memory": memory(),
    }
    rows = OfflineRows.of(changes.pop("offline_rows", ()))
    return Snapshot(**fields | {"offline_rows": rows} | changes)


def memory(available: int = 10_000, growth: int = 0, reserve: int = 1_000) -> MemoryView:
    return MemoryView(
        total_tokens=10_000,
        available_tokens=available,
        growth_tokens=growth,
        reserve_tokens=reserve,
    )


def online(rows: int, *, due_in_s: float, now_s: float = 10.0) -> OnlineLoad:
    return OnlineLoad(
        rows=rows,
        kv_tokens=200 * rows,
        earliest_deadline_s=now_s + due_in_s + 1e-6,  # a hair, so that sums of floats fit
        earliest_gap_s=now_s + 0.9,
    )


def waiting(rid: str, *, tokens: int, due_in_s: float = 2.0) -> WaitingOnline:
    return WaitingOnline(
        rid=rid,
        deadline_s=10.0 + due_in_s,
        extend_tokens=tokens,
        prefix_tokens=0,
        max_new_tokens=24,
    )


def candidate(rid: str, *, tokens: int, parked: int | None = None) -> OfflineCandidate:
    """One that never ran, or that gave way `parked` iterations ago and rests for 4."""
    return OfflineCandidate(
        rid=rid,
        extend_tokens=tokens,
        prefix_tokens=0,
        max_new_tokens=16,
        steps_parked=parked,
        rest_steps=0 if parked is None else SETTINGS.min_parked_steps,
    )


def row(rid: str, *, kv: int = 300, output: int = 4, releasable: bool = True) -> OfflineRow:
    return OfflineRow(
        rid=rid,
        kv_tokens=kv,
        private_tokens=kv // 2,
        output_tokens=output,
        remaining_tokens=12,
        releasable=releasable,
    )
