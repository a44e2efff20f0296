"""The batch service of one server: store, files, runner and webhooks, and their life."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from echo_sglang.service.engine import Engine
from echo_sglang.service.errors import StoreError
from echo_sglang.service.files import MAX_UPLOAD_BYTES, Files
from echo_sglang.service.forecast import Speed
from echo_sglang.service.http_errors import UnavailableError
from echo_sglang.service.model import Batch
from echo_sglang.service.runner import Runner, RunnerSettings
from echo_sglang.service.store import Store, open_store, server_name
from echo_sglang.service.webhooks import WebhookSender, WebhookTarget

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 3_600.0
SPEED_KEPT_S = 2.0
SPEED_WAIT_S = 2.0
KEEP_BATCHES_S = 90 * 86_400.0
"""How long an ended batch can still be looked up; its files go after 30 days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How the batch service of a server is set up.

    data_dir: its folder. store_url, files_url: a shared database, an object store; None for
        what is in the folder. upgrade: bring a store of an older release up to date.
    webhook: where events go, None for nowhere.
    tenant_header: request header that names the tenant, set by a gateway; None for one tenant.
    """

    data_dir: Path
    store_url: str | None = None
    files_url: str | None = None
    upgrade: bool = False
    webhook: WebhookTarget | None = None
    tenant_header: str | None = None
    max_upload_bytes: int = MAX_UPLOAD_BYTES
    runner: RunnerSettings = field(default_factory=lambda: RunnerSettings(name=""))


class BatchService:
    """Opened by `open_service`; runs between `start` and `stop`."""

    def __init__(
        self, store: Store, files: Files, settings: ServiceSettings, clock: Callable[[], float]
    ) -> None:
        self.store = store
        self.files = files
        self.settings = settings
        self.clock = clock
        self._runner: Runner | None = None
        self._engine: Engine | None = None
        self._speed = Speed()
        self._speed_until_s = -math.inf
        self._tasks: list[asyncio.Task[None]] = []
        self._broken: str | None = None

    def start(self, engine: Engine) -> None:
        """Begin to run batches on this engine, within the running event loop."""
        runner = Runner(self.store, self.files, engine, self.settings.runner, clock=self.clock)
        self._runner = runner
        self._engine = engine
        self._tasks = [asyncio.create_task(self._run(runner)), asyncio.create_task(self._sweep())]
        if self.settings.webhook is not None:
            sender = WebhookSender(self.store.outbox, self.settings.webhook, clock=self.clock)
            self._tasks.append(asyncio.create_task(sender.run()))

    async def stop(self) -> None:
        """Give lines and leases back, take no more requests, close. Again does nothing."""
        runner, self._runner = self._runner, None
        if runner is not None and not self._tasks[0].done():
            await runner.stop()
        for task in self._tasks[1:]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self.store.close()

    def require_running(self) -> None:
        """Raises UnavailableError while requests cannot be taken."""
        if self._broken is not None:
            raise UnavailableError(f"the batch service stopped: {self._broken}")
        if self._runner is None:
            raise UnavailableError("the server is starting or stopping; try again")

    def wake(self) -> None:
        """Tell the runner that a client changed something."""
        if self._runner is not None:
            self._runner.wake()

    def lines_per_s(self, batch: Batch) -> float | None:
        """The pace of a batch on this server, None if unknown."""
        return self._runner.lines_per_s(batch.id) if self._runner is not None else None

    async def speed(self) -> Speed:
        """How fast the engine does offline work, at most SPEED_KEPT_S old; nothing known if it
        does not say so in time."""
        now_s = asyncio.get_running_loop().time()
        if self._engine is not None and self._engine.ready and now_s >= self._speed_until_s:
            self._speed_until_s = now_s + SPEED_KEPT_S
            try:
                self._speed = await asyncio.wait_for(self._engine.speed(), SPEED_WAIT_S)
            except Exception:
                self._speed = Speed()
                logger.warning("the engine does not say how fast it is", exc_info=True)
        return self._speed

    async def _run(self, runner: Runner) -> None:
        try:
            await runner.run()
        except Exception as error:
            self._broken = f"{error}; see the server's log and restart it"
            logger.exception("batches are no longer run")

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(StoreError):
                await asyncio.to_thread(self.files.sweep)
                ended_before = self.clock() - KEEP_BATCHES_S
                await asyncio.to_thread(self.store.batches.forget, ended_before)
            await asyncio.sleep(SWEEP_EVERY_S)


def open_service(settings: ServiceSettings, clock: Callable[[], float]) -> BatchService:
    """Open the store and the files. clock: Unix seconds.

    Raises StoreError: the folder is used by another server, the database is damaged, ...
    """
    store = open_store(
        settings.data_dir,
        settings.store_url,
        upgrade=settings.upgrade,
        events=settings.webhook is not None,
    )
    try:
        files = Files(
            store,
            settings.data_dir,
            settings.files_url,
            clock=clock,
            max_upload_bytes=settings.max_upload_bytes,
        )
        name = settings.runner.name or server_name(settings.data_dir)
    except BaseException:
        store.close()
        raise
    named = replace(settings, runner=replace(settings.runner, name=name))
    return BatchService(store, files, named, clock)
