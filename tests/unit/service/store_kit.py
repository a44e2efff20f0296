"""Small makers for tests of the store."""

from __future__ import annotations

from echo_sglang.service.model import (
    Batch,
    FileObject,
    IdempotencyKey,
    Lease,
    Line,
    LineResult,
    NewBatch,
    ResultKind,
    Usage,
)
from echo_sglang.service.store import Store

ENDPOINT = "/v1/completions"


def add_file(store: Store, number: int = 0, *, owner: str = "", **values: object) -> FileObject:
    file = FileObject(
        **{
            "id": f"file-{number:032x}",
            "owner": owner,
            "filename": "in.jsonl",
            "purpose": "batch",
            "size_bytes": 10,
            "created_at": float(number),
            **values,
        }
    )
    store.files.add(file)
    return file


def create(
    store: Store,
    file: FileObject,
    *,
    now: float = 100.0,
    window_s: float = 1000.0,
    key: IdempotencyKey | None = None,
) -> Batch:
    new = NewBatch(
        owner=file.owner,
        endpoint=ENDPOINT,
        input_file_id=file.id,
        completion_window="24h",
        window_s=window_s,
    )
    return store.batches.create(new, now, key)[0]


def lines_of(batch_id: str, count: int) -> list[Line]:
    return [
        Line(
            batch_id=batch_id,
            number=number,
            custom_id=f"c{number}",
            offset=10 * number,
            size_bytes=9,
            order_key=bytes([number % 3, number]),
        )
        for number in range(1, count + 1)
    ]


def started(store: Store, count: int, *, number: int = 0) -> tuple[Lease, Batch]:
    """A batch in progress with so many lines, and the lease on it."""
    batch = create(store, add_file(store, number))
    [(lease, _)] = store.work.acquire("one", 100.0, 30.0, 5)
    store.work.begin_lines(lease)
    store.work.add_lines(lease, lines_of(batch.id, count))
    return lease, store.work.start(lease, "m", 101.0)


def result(number: int, kind: ResultKind = ResultKind.OUTPUT, text: str = "") -> LineResult:
    return LineResult(
        number=number,
        kind=kind,
        payload=f'{{"custom_id": "c{number}{text}"}}'.encode(),
        usage=Usage(input_tokens=3, output_tokens=2),
    )
