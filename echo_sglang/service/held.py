"""One batch that a runner holds the lease of, and where its lines are read from."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field

import orjson

from echo_sglang.service.contents import open_regular
from echo_sglang.service.dispatch import Pace, Standing
from echo_sglang.service.errors import StoreIOError
from echo_sglang.service.files import Files
from echo_sglang.service.model import Batch, BatchState, Lease, Line


@dataclass(slots=True, kw_only=True, eq=False)
class Held:
    """tasks: lines that the engine works on, by number. unkept: numbers of lines whose
    results are not written down yet. suspects: the lines in `tasks` that met engine crashes
    before, and how many. phase: the validation or the end of the batch, while it runs.
    """

    lease: Lease
    batch: Batch
    pace: Pace
    tasks: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    unkept: set[int] = field(default_factory=set)
    suspects: dict[int, int] = field(default_factory=dict)
    phase: asyncio.Task[Batch] | None = None

    @property
    def in_flight(self) -> int:
        """Lines that take up memory and engine capacity."""
        return len(self.tasks) + len(self.unkept)

    @property
    def waits(self) -> bool:
        """Whether it may have lines that nobody has started."""
        return self.batch.counts.open > self.in_flight

    def feeds(self, now: float) -> bool:
        """Whether lines of it may be started."""
        batch = self.batch
        return (
            batch.state is BatchState.IN_PROGRESS
            and self.phase is None
            and not batch.pause_requested
            and now < batch.expires_at
        )

    def standing(self) -> Standing:
        """What its turn depends on."""
        batch = self.batch
        return Standing(
            batch_id=batch.id,
            created_at=batch.created_at,
            expires_at=batch.expires_at,
            open_lines=batch.counts.open,
        )

    async def abort_lines(self) -> None:
        """Cancel what the engine works on, and wait until it has let go."""
        tasks = list(self.tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.tasks.clear()
        self.suspects.clear()


def read_lines(files: Files, file_id: str, lines: list[Line]) -> list[tuple[Line, bytes]]:
    """The bytes of these lines of one input file. Raises NotFoundError, StoreIOError."""
    path = files.local_path(file_id)
    try:
        with open_regular(path) as descriptor:
            return [(line, os.pread(descriptor, line.size_bytes, line.offset)) for line in lines]
    except OSError as error:
        raise StoreIOError(f"input file {file_id} cannot be read: {error}") from error


def body_of(line: Line, raw: bytes) -> dict[str, object] | None:
    """The request body of a line, None if these bytes are not the line that was validated."""
    try:
        entry = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(entry, dict) or entry.get("custom_id") != line.custom_id:
        return None
    body = entry.get("body")
    return body if isinstance(body, dict) else None
