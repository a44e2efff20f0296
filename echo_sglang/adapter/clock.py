"""The one place where Echo's scheduler process reads a clock."""

from __future__ import annotations

import time

from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler import Scheduler


class ClockedScheduler(Scheduler):
    """SGLang's scheduler with Echo's clocks. Override them to run on virtual time."""

    def echo_clock(self) -> float:
        """Seconds on a monotonic clock; the only clock Echo reads in this process."""
        return time.perf_counter()

    def echo_wall_clock(self) -> float:
        """Unix seconds, only to place deadlines that clients gave on the monotonic clock."""
        return time.time()

    def arrived_s(self, req: Req) -> float:
        """When the API server got a request, on `echo_clock`; now, where nobody noted it.

        Its user waits since then: for the tokenizer, and for the iteration that runs when the
        request reaches the scheduler, which takes in none before the iteration is over.
        """
        now_s, created_s = self.echo_clock(), float(req.time_stats.created_time)
        return min(created_s, now_s) if created_s > 0.0 else now_s
