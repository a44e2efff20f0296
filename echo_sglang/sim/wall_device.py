"""An emulated device on the wall clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from echo_sglang.domain.batch import BatchShape
from echo_sglang.sim.device import Device


class WallDevice:
    """One device on the wall clock: work is queued, and each piece ends when it would."""

    def __init__(
        self,
        device: Device,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._device = device
        self._clock = clock
        self._sleep = sleep
        self._free_s = 0.0

    def queue(self, shape: BatchShape) -> DeviceEvent:
        """Queue one batch behind what is queued already; the event is its end."""
        start_s = max(self._free_s, self._clock())
        self._free_s = start_s + self._device.seconds(shape)
        return DeviceEvent(self._free_s, self._clock, self._sleep)


class DeviceEvent:
    """Stands in for the CUDA event that SGLang waits for before it reads a result."""

    def __init__(
        self, end_s: float, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._end_s = end_s
        self._clock = clock
        self._sleep = sleep

    def record(self, *args: Any) -> None:
        """The moment is known already."""

    def query(self) -> bool:
        """True once it has come."""
        return self._clock() >= self._end_s

    def synchronize(self) -> None:
        """Wait for it."""
        left_s = self._end_s - self._clock()
        if left_s > 0:
            self._sleep(left_s)
