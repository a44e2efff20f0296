"""The one place where Echo's scheduler process reads a clock."""

from __future__ import annotations

import time

from sglang.srt.managers.scheduler import Scheduler


class ClockedScheduler(Scheduler):
    """SGLang's scheduler with Echo's clocks. Override them to run on virtual time."""

    def echo_clock(self) -> float:
        """Seconds on a monotonic clock; the only clock Echo reads in this process."""
        return time.perf_counter()

    def echo_wall_clock(self) -> float:
        """Unix seconds, only to place deadlines that clients gave on the monotonic clock."""
        return time.time()
