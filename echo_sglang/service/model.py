"""The values of the batch service. All times are Unix seconds (float), all ids server-made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from echo_sglang.service.forecast import NO_DEMAND, Demand

EMBEDDINGS = "/v1/embeddings"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", EMBEDDINGS)

FILE_ID = re.compile(r"file-[0-9a-f]{32}")
BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")


class BatchState(StrEnum):
    """Where a batch is in its life; the names are OpenAI's."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True once nothing about the batch changes any more."""
        return self in FINAL_STATES


FINAL_STATES = frozenset(
    {BatchState.FAILED, BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED}
)

TRANSITIONS: Mapping[BatchState, frozenset[BatchState]] = {
    BatchState.VALIDATING: frozenset(
        {BatchState.FAILED, BatchState.IN_PROGRESS, BatchState.CANCELLING, BatchState.EXPIRED}
    ),
    BatchState.IN_PROGRESS: frozenset({BatchState.FINALIZING, BatchState.CANCELLING}),
    BatchState.FINALIZING: frozenset({BatchState.COMPLETED, BatchState.EXPIRED}),
    BatchState.CANCELLING: frozenset({BatchState.CANCELLED}),
    BatchState.FAILED: frozenset(),
    BatchState.COMPLETED: frozenset(),
    BatchState.EXPIRED: frozenset(),
    BatchState.CANCELLED: frozenset(),
}
"""Which state may follow which. A batch out of time is `finalizing` while its files are
written, then `expired`; one out of time before it was validated has no lines to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileObject:
    """One stored file. owner: the tenant it belongs to, "" without tenants.

    expires_at: when it is deleted, None for never.
    """

    id: str
    owner: str
    filename: str
    purpose: str
    size_bytes: int
    created_at: float
    expires_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Lines of a batch. total is 0 until it is validated."""

    total: int = 0
    completed: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        if min(self.completed, self.failed) < 0 or self.completed + self.failed > self.total:
            raise ValueError(f"counts that cannot be: {self}")

    @property
    def open(self) -> int:
        """Lines that have no result yet."""
        return self.total - self.completed - self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of all answered lines of a batch."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchError:
    """Why a batch was refused; `line` counts from 1, None for the whole file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch as stored.

    completion_window: as the client gave it ("24h"); expires_at: the deadline it means.
    ends_as: the final state that `finalizing` or `cancelling` leads to, None before.
    output_file, error_file: reserved ids. A file exists, and can be read even while the
        batch runs, as soon as it has a line; see `output_file_id`, `error_file_id`.
    output_expires_after_s: lifetime of the result files from when they are final.
    pause_requested: no new lines are started; lines in flight finish. The deadline stays.
    demand: of all its lines; nothing until it is validated.
    """

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: float
    expires_at: float
    output_file: str
    error_file: str
    state: BatchState = BatchState.VALIDATING
    ends_as: BatchState | None = None
    counts: Counts = Counts()
    usage: Usage = Usage()
    demand: Demand = NO_DEMAND
    model: str | None = None
    errors: tuple[BatchError, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    output_expires_after_s: int | None = None
    pause_requested: bool = False
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    expired_at: float | None = None
    cancelling_at: float | None = None
    cancelled_at: float | None = None

    @property
    def output_file_id(self) -> str | None:
        """The output file, None while (or if in the end) it has no line."""
        return self.output_file if self.counts.completed else None

    @property
    def open_demand(self) -> Demand:
        """What the lines without a result ask for, if all ask for the same."""
        return self.demand.share(self.counts.open / self.counts.total if self.counts.total else 0.0)

    @property
    def error_file_id(self) -> str | None:
        """The error file, None while (or if in the end) it has no line."""
        return self.error_file if self.counts.failed else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """What a client asks for; values are already checked. See `Batch` for the fields."""

    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    window_s: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    output_expires_after_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """A client's key and the digest of the request body it came with."""

    key: str
    body_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One validated line that has no result yet.

    number: counts from 1, as in the input file. offset, size_bytes: where it is there.
    order_key: lines that sort next to each other by it share prompt prefixes.
    crashes: engine crashes that this line was in flight at.
    """

    batch_id: str
    number: int
    custom_id: str
    offset: int
    size_bytes: int
    order_key: bytes
    crashes: int = 0


class ResultKind(StrEnum):
    """Which of the two files a line ends in."""

    OUTPUT = "output"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """The end of one line: `payload` is its JSON line without the newline."""

    number: int
    kind: ResultKind
    payload: bytes
    usage: Usage = Usage()

    def __post_init__(self) -> None:
        if b"\n" in self.payload or not self.payload:
            raise ValueError(f"line {self.number}: a result is one non-empty line of JSON")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to work on a batch until `until`; `fence` grows with every new owner."""

    batch_id: str
    fence: int
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A webhook to send: `kind` is "batch.completed", "batch.failed", "batch.expired" or
    "batch.cancelled"; `attempts` counts those made before this one."""

    id: str
    kind: str
    batch_id: str
    owner: str
    created_at: float
    attempts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTag:
    """What the engine is told of a line beside its body."""

    batch_id: str
    custom_id: str
    deadline_unix_s: float
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAnswer:
    """What the engine said to one line: HTTP status, the body's JSON object, request id."""

    status: int
    body: Mapping[str, Any]
    request_id: str

    @property
    def is_transient(self) -> bool:
        """True for what the same line may not meet again: overload, a server that stops."""
        return self.status in {429, 502, 503, 504}
