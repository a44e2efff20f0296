"""Feeds the engine with the lines of all batches and writes down what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from echo_sglang.service.answers import ResultMaker
from echo_sglang.service.dispatch import Pace
from echo_sglang.service.engine import Engine
from echo_sglang.service.errors import (
    LeaseLostError,
    StoreBusyError,
    StoreError,
    StoreFullError,
)
from echo_sglang.service.feeder import Feeder, FeedSettings
from echo_sglang.service.files import Files
from echo_sglang.service.held import Held
from echo_sglang.service.model import Batch, BatchState, Lease, LineResult
from echo_sglang.service.phases import finish_batch, validate_batch
from echo_sglang.service.recorder import Offload, Recorder
from echo_sglang.service.store import Store
from echo_sglang.service.validation import ValidationLimits

logger = logging.getLogger(__name__)

_MAX_PHASES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """How a runner behaves.

    name: who holds the leases; the same after a restart, differs between servers that share
        a store (see `store.server_name`).
    lease_s: a runner that is silent this long loses its batches to another one.
    poll_s: how often it looks for new batches when not told (see `Runner.wake`).
    max_batches: batches held at once; more wait for a free place, or another server.
    blame_crashes: whether lines in flight when this runner's server last died count that as a
        crash they met. False if it is known to have been killed from outside. Lines of a runner
        of another server that fell silent always do: what became of it is not known.
    """

    name: str
    lease_s: float = 30.0
    poll_s: float = 1.0
    max_batches: int = 64
    blame_crashes: bool = True
    feed: FeedSettings = field(default_factory=FeedSettings)
    limits: ValidationLimits = field(default_factory=ValidationLimits)


class Runner:
    """Runs until `stop`. One a server; several servers may share one store."""

    def __init__(
        self,
        store: Store,
        files: Files,
        engine: Engine,
        settings: RunnerSettings,
        *,
        clock: Callable[[], float],
        offload: Offload = asyncio.to_thread,
    ) -> None:
        """clock: Unix seconds (`time.time`). offload: runs blocking calls elsewhere."""
        self._store = store
        self._files = files
        self._settings = settings
        self._clock = clock
        self._offload = offload
        self._held: dict[str, Held] = {}
        self._stopping = False
        self._wakened = asyncio.Event()
        self._look_now = True
        self._next_look = 0.0
        self._began = False
        self._blame_own = settings.blame_crashes
        self._clean_now = True
        self._maker = ResultMaker(store.database.new_hex)
        self._recorder = Recorder(store.work, offload, self._kept)
        self._feeder = Feeder(
            store.work,
            files,
            engine,
            self._recorder,
            self._maker,
            settings.feed,
            offload=offload,
            clock=clock,
            wake=self._wakened.set,
        )
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Work until `stop`. Raises StoreIOError or StoreCorruptError when results can no
        longer be kept; everything acknowledged before that is safe."""
        recording = asyncio.create_task(self._recorder.run())
        try:
            while not self._stopping:
                await self._round()
                await self._rest(recording)
        finally:
            try:
                await self._shut_down(recording)
            finally:
                self._ended.set()

    def wake(self) -> None:
        """There is something new (a batch, a cancel, a resume): look now."""
        self._look_now = True
        self._wakened.set()

    async def stop(self) -> None:
        """Abort the lines in flight, give them and the leases back; `run` returns then."""
        self._stopping = True
        self._wakened.set()
        await self._ended.wait()

    def lines_per_s(self, batch_id: str) -> float | None:
        """How fast this batch gets on here, None if not known (for its ETA)."""
        held = self._held.get(batch_id)
        return held.pace.lines_per_s(self._clock()) if held else None

    # One round

    async def _round(self) -> None:
        try:
            await self._look()
            for held in list(self._held.values()):
                await self._advance(held)
            await self._feeder.feed(self._held)
            await self._clean()
        except LeaseLostError as error:
            logger.warning("%s", error)
            self._look_now = True
        except (StoreBusyError, StoreFullError) as error:
            logger.error("trying again in %.1f s: %s", self._settings.poll_s, error)

    async def _rest(self, recording: asyncio.Task[None]) -> None:
        """Until something happened or it is time to look."""
        waiting = asyncio.create_task(self._wakened.wait())
        try:
            await asyncio.wait(
                {waiting, recording},
                timeout=self._settings.poll_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            waiting.cancel()
        self._wakened.clear()
        if recording.done():
            recording.result()

    async def _look(self) -> None:
        """Keep the leases, take free batches, learn what clients changed."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._next_look and not self._look_now:
            return
        work = self._store.work
        if not self._began:
            await self._offload(work.forget_leases, self._settings.name)
            self._began = True
        self._look_now = False
        self._next_look = now_s + self._settings.poll_s
        await self._renew()
        await self._acquire()
        if self._held:
            leases = [held.lease for held in self._held.values()]
            found = await self._offload(work.look, leases)
            for held in list(self._held.values()):
                if held.batch.id in found:
                    self._learn(held, found[held.batch.id])
                else:
                    logger.warning("the lease of %s is lost", held.batch.id)
                    await self._drop(held)

    async def _renew(self) -> None:
        """Before a third of the lease is over, and when the clock jumped."""
        now = self._clock()
        lease_s = self._settings.lease_s
        leases = [
            held.lease
            for held in self._held.values()
            if not lease_s * 2 / 3 < held.lease.until - now <= lease_s
        ]
        if leases:
            for lease in await self._offload(self._store.work.renew, leases, now, lease_s):
                self._held[lease.batch_id].lease = lease

    async def _acquire(self) -> None:
        free = self._settings.max_batches - len(self._held)
        if free <= 0:
            return
        taken: list[tuple[Lease, Batch]] = await self._offload(
            self._store.work.acquire,
            self._settings.name,
            self._clock(),
            self._settings.lease_s,
            free,
            blame_own=self._blame_own,
        )
        # A lease of its own that lapses from now on does so while its engine lives.
        self._blame_own = False
        for lease, batch in taken:
            old = self._held.get(batch.id)
            if old is not None:
                await self._drop(old)
            self._held[batch.id] = Held(lease=lease, batch=batch, pace=Pace(self._clock()))
            self._feeder.batches_changed()
            logger.info("working on %s (%s)", batch.id, batch.state.value)

    def _learn(self, held: Held, batch: Batch) -> None:
        before = held.batch
        held.batch = batch
        if (before.state, before.pause_requested) != (batch.state, batch.pause_requested):
            self._feeder.batches_changed()

    async def _advance(self, held: Held) -> None:
        """Take the step that the batch's state asks for."""
        if held.phase is not None:
            if held.phase.done():
                await self._end_phase(held, held.phase)
            return
        batch = held.batch
        if batch.state.is_final:
            await self._drop(held)
            self._clean_now = True
        elif batch.state is BatchState.VALIDATING:
            self._begin_phase(
                held, validate_batch, held.lease, batch, self._settings.limits, self._clock
            )
        elif batch.state is BatchState.IN_PROGRESS:
            await self._finalize_if_due(held)
        else:
            await held.abort_lines()
            self._begin_phase(held, finish_batch, held.lease, batch, self._maker, self._clock)

    async def _finalize_if_due(self, held: Held) -> None:
        now = self._clock()
        if held.batch.counts.open and now < held.batch.expires_at:
            return
        ends_as = BatchState.EXPIRED if held.batch.counts.open else BatchState.COMPLETED
        await held.abort_lines()
        self._learn(
            held, await self._offload(self._store.endings.finalize, held.lease, ends_as, now)
        )
        self._wakened.set()

    # Phases

    def _begin_phase(self, held: Held, phase: Callable[..., Batch], *args: object) -> None:
        running = sum(each.phase is not None for each in self._held.values())
        if running >= _MAX_PHASES:
            return

        async def run() -> Batch:
            try:
                batch: Batch = await self._offload(phase, self._store, self._files, *args)
            finally:
                self._wakened.set()
            return batch

        held.phase = asyncio.create_task(run())

    async def _end_phase(self, held: Held, phase: asyncio.Task[Batch]) -> None:
        held.phase = None
        try:
            self._learn(held, phase.result())
            self._wakened.set()
        except LeaseLostError as error:
            logger.warning("%s", error)
            self._look_now = True

    async def _clean(self) -> None:
        """Part by part, so that lines need not wait for it."""
        if self._clean_now:
            self._clean_now = bool(await self._offload(self._store.endings.clean))
            if self._clean_now:
                self._wakened.set()

    async def _drop(self, held: Held) -> None:
        self._held.pop(held.batch.id, None)
        await held.abort_lines()
        self._feeder.forget(held.batch.id)

    # Results and the end

    def _kept(self, lease: Lease, results: list[LineResult], batch: Batch | None) -> None:
        held = self._held.get(lease.batch_id)
        if held is None or held.lease.fence != lease.fence:
            return
        held.unkept.difference_update(result.number for result in results)
        if batch is None:
            self._look_now = True
        else:
            held.pace.add(len(results), self._clock())
            self._learn(held, batch)
        self._wakened.set()

    async def _shut_down(self, recording: asyncio.Task[None]) -> None:
        """Abort, keep what came, give everything back. Store errors no longer matter: what
        was acknowledged is kept, and the next runner takes over what was not given back."""
        for held in self._held.values():
            await held.abort_lines()
        phases = [held.phase for held in self._held.values() if held.phase is not None]
        await asyncio.gather(*phases, return_exceptions=True)
        self._recorder.close()
        with contextlib.suppress(StoreError):
            await recording
        for held in self._held.values():
            with contextlib.suppress(StoreError, LeaseLostError):
                await self._offload(self._store.work.release, held.lease)
        self._held.clear()
