"""Writes results down, many in one transaction, and holds on to them until they are kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from echo_sglang.service.errors import LeaseLostError, StoreBusyError, StoreFullError
from echo_sglang.service.model import Batch, Lease, LineResult
from echo_sglang.service.work_table import WorkTable

logger = logging.getLogger(__name__)

Offload = Callable[..., Awaitable[Any]]
_MAX_PAUSE_S = 5.0


class Recorder:
    """While one transaction is synced to disk the next results gather: no timer is needed.

    kept: called with the lease, the results and the batch after them, or None if the lease is
    lost. stalled: True while the disk is full or the database locked; nothing new should be
    started then, as every result waits in memory.
    """

    def __init__(
        self,
        work: WorkTable,
        offload: Offload,
        kept: Callable[[Lease, list[LineResult], Batch | None], None],
    ) -> None:
        self.stalled = False
        self._work = work
        self._offload = offload
        self._kept = kept
        self._waiting: dict[Lease, list[LineResult]] = {}
        self._something = asyncio.Event()
        self._closing = False

    def add(self, lease: Lease, result: LineResult) -> None:
        """Keep this result soon; it is not acknowledged before `kept` names it."""
        self._waiting.setdefault(lease, []).append(result)
        self._something.set()

    async def run(self) -> None:
        """Work until `close`, then keep what is waiting. Raises StoreIOError and
        StoreCorruptError: what was not yet kept is void then, its lines will run again."""
        while not self._closing or self._waiting:
            await self._something.wait()
            if not self._closing:
                self._something.clear()
            while self._waiting:
                lease = next(iter(self._waiting))
                results = self._waiting.pop(lease)
                self._kept(lease, results, await self._record(lease, results))

    def close(self) -> None:
        """Nothing more will be added. On a full or locked disk `run` gives up instead of
        waiting for it."""
        self._closing = True
        self._something.set()

    async def _record(self, lease: Lease, results: list[LineResult]) -> Batch | None:
        pause_s = 0.1
        while True:
            try:
                batch: Batch = await self._offload(self._work.record, lease, results)
            except LeaseLostError as error:
                logger.warning("%d results are void: %s", len(results), error)
                return None
            except (StoreBusyError, StoreFullError) as error:
                if not self.stalled:
                    logger.error("%d results wait in memory: %s", len(results), error)
                self.stalled = True
                if self._closing:
                    return None
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
            else:
                self.stalled = False
                return batch
