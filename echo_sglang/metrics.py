"""What Echo reports while it serves, and the Prometheus metrics that show it.

The scheduler reports to `Instruments`; an instrument that fails is switched off with a log
line and cannot break serving (the idea of trio's `Instrument`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from echo_sglang.domain.batch import BatchShape
from echo_sglang.estimate.health import StepTimeStatus
from echo_sglang.policy.attainment import OnlineProgress
from echo_sglang.policy.offline_status import OfflineProspects

logger = logging.getLogger(__name__)


class Instrument(Protocol):
    """Something that wants to know. Called between iterations: be quick, never block."""

    def step(self, shape: BatchShape, seconds: float, *, reason: str) -> None:
        """One iteration ended."""

    def online_finished(self, progress: OnlineProgress, attained: bool) -> None:
        """One online request ended."""

    def count(self, name: str, amount: int) -> None:
        """A named event happened `amount` times."""

    def step_times(self, status: StepTimeStatus) -> None:
        """How the step-time model fares; every some seconds."""

    def offline(self, prospects: OfflineProspects) -> None:
        """When offline work will be done; every some seconds."""


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

    def step_times(self, status: Callable[[], StepTimeStatus]) -> None:
        """See `Instrument.step_times`; `status` is asked only if there is an instrument."""
        if self._instruments:
            found = status()
            self._call(lambda i: i.step_times(found))

    def offline(self, prospects: OfflineProspects) -> None:
        """See `Instrument.offline`."""
        self._call(lambda i: i.offline(prospects))

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
        gauge = partial(prometheus.Gauge, multiprocess_mode="mostrecent")
        self._add_step_time_gauges(gauge)
        self._add_offline_gauges(gauge)

    def _add_offline_gauges(self, gauge: Callable[..., Any]) -> None:
        self._pace = gauge("echo:offline_work_per_second", "Tokens of offline work done per second")
        self._jobs = gauge("echo:offline_jobs_waiting", "Jobs with offline requests not yet begun")
        self._laxity = gauge(
            "echo:offline_least_laxity_seconds", "Time to spare of the tightest offline deadline"
        )
        self._late = gauge(
            "echo:offline_late_requests", "Waiting offline requests predicted to miss a deadline"
        )

    def _add_step_time_gauges(self, gauge: Callable[..., Any]) -> None:
        self._error = gauge(
            "echo:step_time_error",
            "Quantiles of |predicted / measured - 1|",
            ["regime", "quantile"],
        )
        self._bias = gauge("echo:step_time_bias", "Mean of predicted / measured - 1", ["regime"])
        self._under = gauge(
            "echo:step_time_under_prediction_rate", "Share longer than predicted", ["regime"]
        )
        self._coverage = gauge(
            "echo:step_time_coverage", "Share within the upper bound", ["regime"]
        )
        self._drift = gauge(
            "echo:step_time_drift_ratio", "Worst measured over predicted time, or its inverse"
        )
        self._safe_mode = gauge(
            "echo:step_time_safe_mode", "1 while the step-time model is not relied on"
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

    def step_times(self, status: StepTimeStatus) -> None:
        """See `Instrument.step_times`."""
        for report in status.regimes:
            regime = report.regime
            for quantile, error in (
                ("0.5", report.p50_error),
                ("0.9", report.p90_error),
                ("0.95", report.p95_error),
                ("0.99", report.p99_error),
            ):
                self._error.labels(regime, quantile).set(error)
            self._bias.labels(regime).set(report.signed_bias)
            self._under.labels(regime).set(report.under_prediction_rate)
            self._coverage.labels(regime).set(report.coverage)
        if status.drift_ratio is not None:
            self._drift.set(status.drift_ratio)
        self._safe_mode.set(0 if status.safe_mode is None else 1)

    def offline(self, prospects: OfflineProspects) -> None:
        """See `Instrument.offline`."""
        self._pace.set(prospects.work_per_s or 0.0)
        self._jobs.set(prospects.jobs_waiting)
        laxity_s = prospects.least_laxity_s
        self._laxity.set(math.nan if laxity_s is None else laxity_s)
        self._late.set(prospects.late_requests)


def prometheus_instruments(*, enabled: bool) -> Instruments:
    """Instruments for a server; none without SGLang's --enable-metrics."""
    if not enabled:
        return Instruments([])
    import prometheus_client  # SGLang must set its multiprocess directory first

    return Instruments([PrometheusInstrument(prometheus_client)])
