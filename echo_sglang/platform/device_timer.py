"""Lets SGLang time its forward passes on a CPU, where there are no device events.

sglang/srt/utils/device_timer.py::DeviceTimer (under forward pass metrics and the occupancy
metrics) makes a `_TimingInterval` of two CUDA events. On a CPU a forward pass is over when
its call returns, so two readings of the clock say the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class CpuEvent:
    """A moment, with the part of torch's Event that SGLang's timer uses."""

    at_s: float = field(default_factory=time.perf_counter)

    def elapsed_time(self, end: CpuEvent) -> float:
        """Milliseconds from this moment to `end`, as torch.Event counts them."""
        return 1e3 * (end.at_s - self.at_s)


@dataclass(slots=True)
class CpuTimingInterval:
    """One timed segment; complete as soon as it was ended."""

    start_event: CpuEvent = field(default_factory=CpuEvent)
    end_event: CpuEvent | None = None
    metadata: dict[str, Any] | None = None
    observer: Any = None
    stream: None = None

    @staticmethod
    def create(track_stream: bool = False) -> CpuTimingInterval:
        """Begin now. There is one stream of work, so none is tracked."""
        return CpuTimingInterval()

    def end(self, metadata: dict[str, Any]) -> None:
        """End now."""
        self.end_event = CpuEvent()
        self.metadata = metadata

    def is_complete(self) -> bool:
        """True once ended."""
        return self.end_event is not None

    def is_active(self) -> bool:
        """True until ended."""
        return self.end_event is None

    def elapsed_time(self) -> float:
        """Milliseconds between both ends; call it after `end` only."""
        assert self.end_event is not None, "an interval that was not ended has no length"
        return self.start_event.elapsed_time(self.end_event)


def install() -> None:
    """Put it in place of SGLang's, in this process. Idempotent."""
    from sglang.srt.utils import device_timer

    device_timer._TimingInterval = CpuTimingInterval
