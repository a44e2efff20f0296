"""What Echo reports while it serves, and the Prometheus metrics that show it.

The scheduler reports to `Instruments`; an instrument that fails is switched off with a log
line and cannot break serving (the idea of trio's `Instrument`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from echo_sglang.domain.batch import BatchShape
from echo_sglang.policy.attainment import OnlineProgress

logger = logging.getLogger(__name__)


class Instrument(Protocol):
    """Something that wants to know. Called between iterations: be quick, never block."""

    def step(self, shape: BatchShape, seconds: float, *, reason: str) -> None:
        """One iteration ended."""

    def online_finished(self, progress: OnlineProgress, attained: bool) -> None:
        """One online request ended."""

    def count(self, name: str, amount: int) -> None:
        """A named event happened `amount` times."""


class Instruments:
    """Calls every instrument; drops one at its first error."""

    def __init__(self, instruments: list[Instrument]) -> None:
        self._instruments = instruments

    def step(self, shape: BatchShape, seconds: float, *, reason: str) -> None:
        """See `Instrument.step`."""
        self._call(lambda i: i.step(shape, seconds, reason=reason))

    def online_finished(self, progress: OnlineProgress, attained: bool) -> None:
        """See `Instrument.online_finished`."""
        self._call(lambda i: i.online_finished(progress, attained))

    def count(self, name: str, amount: int) -> None:
        """See `Instrument.count`."""
        self._call(lambda i: i.count(name, amount))

    def _call(self, report: Callable[[Instrument], None]) -> None:
        for instrument in list(self._instruments):
            try:
                report(instrument)
            except Exception:
                logger.exception("instrument %r failed and is switched off", instrument)
                self._instruments.remove(instrument)


class PrometheusInstrument:
    """The `echo:*` metrics. Created in the scheduler process, after SGLang set up its own."""

    def __init__(self, prometheus: Any) -> None:
        buckets = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
        self._steps = prometheus.Histogram(
            "echo:step_seconds", "Duration of iterations", ["reason"], buckets=buckets
        )
        self._tokens = prometheus.Counter(
            "echo:prefill_tokens_total", "Prompt tokens computed", ["reason"]
        )
        self._ttft = prometheus.Histogram(
            "echo:online_ttft_seconds", "Time to first token of online requests", buckets=buckets
        )
        self._tpot = prometheus.Histogram(
            "echo:online_tpot_seconds", "Mean time per output token", buckets=buckets
        )
        self._online = prometheus.Counter(
            "echo:online_requests_total", "Finished online requests", ["slo"]
        )
        self._events = prometheus.Counter(
            "echo:events_total", "Releases, finished offline work and its tokens", ["event"]
        )

    def step(self, shape: BatchShape, seconds: float, *, reason: str) -> None:
        """See `Instrument.step`."""
        self._steps.labels(reason).observe(seconds)
        self._tokens.labels(reason).inc(shape.extend_tokens)

    def online_finished(self, progress: OnlineProgress, attained: bool) -> None:
        """See `Instrument.online_finished`."""
        self._online.labels("attained" if attained else "missed").inc()
        if progress.ttft_s is not None:
            self._ttft.observe(progress.ttft_s)
        if progress.tpot_s is not None:
            self._tpot.observe(progress.tpot_s)

    def count(self, name: str, amount: int) -> None:
        """See `Instrument.count`."""
        self._events.labels(name).inc(amount)


def prometheus_instruments(*, enabled: bool) -> Instruments:
    """Instruments for a server; none without SGLang's --enable-metrics."""
    if not enabled:
        return Instruments([])
    import prometheus_client  # SGLang must set its multiprocess directory first

    return Instruments([PrometheusInstrument(prometheus_client)])
