"""Offline iterations that are not decided ahead, where every moment that online requests wait
for them counts.

Under overlap SGLang decides iteration i + 1 while the device computes iteration i, and launches it
before i ends: who arrives during i waits for the rest of i and for all of i + 1. Beside online
rows that hides the host's work from them. While only offline rows run it hides it from
nobody who minds, so the host waits for i to end before it looks who has arrived.
"""

from __future__ import annotations

from typing import Any

from echo_sglang.adapter.clock import ClockedScheduler
from echo_sglang.adapter.requests import is_offline
from echo_sglang.policy.impact import ImpactAccount


class ShortPipeline(ClockedScheduler):
    """The part of EchoScheduler that waits. EchoScheduler sets what is declared here."""

    impact: ImpactAccount | None
    device_is_synchronous: bool

    def ingest_requests(self, *args: Any, **kwargs: Any) -> Any:
        """SGLang's, after the device has done what nobody online waits for."""
        self.let_offline_iteration_end()
        return super().ingest_requests(*args, **kwargs)

    def let_offline_iteration_end(self) -> None:
        """Wait for the iteration in flight if it has no online part; its result is looked at
        later, as always."""
        in_flight = getattr(self, "result_queue", None)
        if self.impact is None or self.device_is_synchronous or not in_flight:
            return
        batch, result = in_flight[-1]
        if all(is_offline(req) for req in batch.reqs):
            self.wait_for_device(result)

    def wait_for_device(self, result: Any) -> None:
        """Return when `result` was copied to the host."""
        if result.copy_done is not None:
            result.copy_done.synchronize()
