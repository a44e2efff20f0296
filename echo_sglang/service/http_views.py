"""Files and batches as OpenAI's clients see them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from echo_sglang.service.files import RESULT_PURPOSE
from echo_sglang.service.forecast import BYTES_A_TOKEN, NO_DEMAND, Demand, Speed, warning_of
from echo_sglang.service.model import Batch, FileObject, ResultKind


def file_view(file: FileObject) -> Mapping[str, Any]:
    """The file object. Its status is always `processed`, which clients wait for."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at),
        "expires_at": _second(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def growing_file_view(batch: Batch, kind: ResultKind) -> Mapping[str, Any]:
    """The file object of a result file that still grows; its size is known when it is whole."""
    output = kind is ResultKind.OUTPUT
    file = FileObject(
        id=batch.output_file if output else batch.error_file,
        owner=batch.owner,
        filename=f"{batch.id}_{kind.value}.jsonl",
        purpose=RESULT_PURPOSE,
        size_bytes=0,
        created_at=batch.in_progress_at or batch.created_at,
    )
    return {**file_view(file), "status": "uploaded", "status_details": "lines are still added"}


def batch_view(
    batch: Batch, lines_per_s: float | None, now: float, speed: Speed, ahead: Demand = NO_DEMAND
) -> Mapping[str, Any]:
    """The batch object, and under `echo` what OpenAI's does not have.

    lines_per_s: its present pace, None if unknown. speed: of the server's offline work.
    ahead: what unfinished batches with earlier deadlines still ask for.
    """
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": _errors(batch),
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.state.value,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": int(batch.created_at),
        "expires_at": _second(batch.expires_at),
        "in_progress_at": _second(batch.in_progress_at),
        "finalizing_at": _second(batch.finalizing_at),
        "completed_at": _second(batch.completed_at),
        "failed_at": _second(batch.failed_at),
        "expired_at": _second(batch.expired_at),
        "cancelling_at": _second(batch.cancelling_at),
        "cancelled_at": _second(batch.cancelled_at),
        "request_counts": {
            "total": batch.counts.total,
            "completed": batch.counts.completed,
            "failed": batch.counts.failed,
        },
        "usage": _usage(batch),
        "metadata": dict(batch.metadata) or None,
        "echo": _progress(batch, lines_per_s, now, speed, ahead),
    }


def list_view(
    items: Sequence[Mapping[str, Any]],
    has_more: bool,
) -> Mapping[str, Any]:
    """One page."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }


def _second(moment: float | None) -> int | None:
    return None if moment is None else int(moment)


def _errors(batch: Batch) -> Mapping[str, Any] | None:
    if not batch.errors:
        return None
    return {
        "object": "list",
        "data": [
            {
                "code": error.code,
                "line": error.line,
                "message": error.message,
                "param": error.param,
            }
            for error in batch.errors
        ],
    }


def _usage(batch: Batch) -> Mapping[str, Any]:
    usage = batch.usage
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _progress(
    batch: Batch, lines_per_s: float | None, now: float, speed: Speed, ahead: Demand
) -> Mapping[str, Any]:
    """eta_s: seconds until the last line, None if unknown or paused. eta_from: what it rests on.
    warning: a sentence if the window will not hold."""
    counts = batch.counts
    done = (counts.completed + counts.failed) / counts.total if counts.total else 0.0
    needs_s, basis = _needs(batch, lines_per_s, speed, ahead)
    eta_s = None if needs_s is None else math.ceil(needs_s)
    left_s = batch.expires_at - now
    return {
        "paused": batch.pause_requested and not batch.state.is_final,
        "progress": round(done, 4),
        "lines_per_s": None if lines_per_s is None else round(lines_per_s, 3),
        "eta_s": eta_s,
        "eta_from": basis,
        "within_window": None if not eta_s else eta_s <= left_s,
        "warning": None if basis is None else warning_of(needs_s, left_s, basis),
        "prompt_tokens_about": round(batch.demand.prompt_bytes / BYTES_A_TOKEN),
        "output_tokens_at_most": batch.demand.output_tokens,
    }


def _needs(
    batch: Batch, lines_per_s: float | None, speed: Speed, ahead: Demand
) -> tuple[float | None, str | None]:
    """Seconds that what is open needs, and what that rests on."""
    if batch.state.is_final:
        return 0.0, None
    if not batch.counts.total or batch.pause_requested:
        return None, None
    if lines_per_s:
        return batch.counts.open / lines_per_s, "own_pace"
    if batch.demand == NO_DEMAND:
        return None, None
    seconds = speed.seconds_for(ahead + batch.open_demand)
    return seconds, speed.basis if seconds is not None else None
