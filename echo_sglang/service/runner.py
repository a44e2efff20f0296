"""Feeds the engine with the lines of all batches and writes down what came of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from echo_sglang.service.engine import Engine
from echo_sglang.service.files import Files
from echo_sglang.service.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """How a runner behaves; seconds and lines.

    name: who holds the leases; differs between servers that share a store.
    lease_s: a runner that is silent this long loses its batches to another one.
    poll_s: how often it looks for new batches when not told (see `Runner.wake`).
    max_in_flight: lines in flight at most, whatever the engine's capacity says.
    max_attempts: tries of a line that meets transient answers (503, ...), then an error row.
    backoff_s, max_backoff_s: pause after the first transient answer, doubled up to the second.
    """

    name: str
    lease_s: float = 30.0
    poll_s: float = 1.0
    max_in_flight: int = 1024
    max_attempts: int = 10
    backoff_s: float = 0.5
    max_backoff_s: float = 60.0


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
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        """clock: Unix seconds (`time.time`). sleep: `asyncio.sleep`."""

    async def run(self) -> None:
        """Work until `stop`. Raises StoreIOError or StoreCorruptError when results can no
        longer be kept; everything acknowledged before that is safe."""
        raise NotImplementedError

    def wake(self) -> None:
        """There is something new (a batch, a cancel, a resume): look now."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Abort the lines in flight, give them and the leases back, return from `run`."""
        raise NotImplementedError

    def lines_per_s(self, batch_id: str) -> float | None:
        """How fast this batch gets on here, None if not known (for its ETA)."""
        raise NotImplementedError
