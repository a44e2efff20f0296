"""Writes the step trace beside serving: a record an iteration, never in its way.

The scheduler only builds a `StepRecord` and appends it to a list. Every `BATCH_ROWS` records,
every `BATCH_S` seconds, or when the server is idle, the list goes to a thread that makes
text of it and writes it. The thread may be slow or fail: then rows are dropped and counted,
or the trace is switched off with a log line; serving goes on.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from echo_sglang.adapter.trace_file import RotatingFile
from echo_sglang.domain.step_record import StepRecord

BATCH_ROWS = 64
BATCH_S = 0.5
MAX_PENDING_ROWS = 16_384
"""Rows that may wait for a slow disk; some megabytes."""

CLOSE_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TraceState:
    """What became of the records so far; those recorded, not written and not dropped wait.

    error: why the trace was switched off, in words.
    """

    rows_recorded: int
    rows_written: int
    rows_dropped: int
    error: str | None


class StepTraceWriter:
    """Appends records to a rotating file from a thread of its own.

    `append`, `flush` and `close` belong to one thread, never block on I/O and never raise.
    """

    def __init__(self, file: RotatingFile) -> None:
        self._file = file
        self._batch: list[StepRecord] = []
        self._handed_s = 0.0
        self._rows_handed = 0
        self._rows_written = 0
        self._rows_dropped = 0
        self._rows_lost = 0  # as dropped, but counted by the thread
        self._error: str | None = None
        self._queue: SimpleQueue[Sequence[StepRecord] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="echo-step-trace", daemon=True)
        self._thread.start()

    @property
    def state(self) -> TraceState:
        """Counts so far."""
        recorded = self._rows_handed + self._rows_dropped + len(self._batch)
        dropped = self._rows_dropped + self._rows_lost
        return TraceState(recorded, self._rows_written, dropped, self._error)

    def append(self, record: StepRecord) -> None:
        """Keep one record; most calls only do that."""
        self._batch.append(record)
        if len(self._batch) >= BATCH_ROWS or record.ended_s - self._handed_s >= BATCH_S:
            self._handed_s = record.ended_s
            self.flush()

    def flush(self) -> None:
        """Hand what is kept to the thread; drop it if the thread is far behind or gave up."""
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        pending = self._rows_handed - self._rows_written - self._rows_lost
        if self._error is not None or pending > MAX_PENDING_ROWS:
            self._rows_dropped += len(batch)
            return
        self._rows_handed += len(batch)
        self._queue.put(batch)

    def switch_off(self, error: Exception) -> None:
        """Give up for good, saying so once."""
        if self._error is None:
            self._error = f"{type(error).__name__}: {error}"
            logger.error("the step trace is switched off, serving goes on (%s)", self._error)

    def close(self) -> None:
        """Write what is kept and end the thread, waiting a few seconds at most."""
        self.flush()
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is not None:
                self._rows_lost += len(batch)
                continue
            try:
                self._file.write([row_text(record) for record in batch])
                self._rows_written += len(batch)
            except Exception as error:
                self.switch_off(error)
                self._rows_lost += len(batch)
        try:
            self._file.close()
        except OSError as error:
            self.switch_off(error)


def row_text(record: StepRecord) -> str:
    """One line of the trace, without newline."""
    return json.dumps(record.to_row(), separators=(",", ":"))
