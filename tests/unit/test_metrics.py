"""Instruments report, and none of them can break serving."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import prometheus_client
import pytest

from echo_sglang.domain.batch import BatchShape
from echo_sglang.estimate.health import StepTimeStatus
from echo_sglang.estimate.report import RegimeReport
from echo_sglang.metrics import Instruments, PrometheusInstrument, prometheus_instruments
from echo_sglang.policy.attainment import OnlineProgress
from echo_sglang.policy.deadlines import Outlook
from echo_sglang.policy.offline_status import OfflineProspects


class Recorder:
    def __init__(self, failing: bool = False) -> None:
        self.failing = failing
        self.heard: list[str] = []

    def step(self, shape: BatchShape, seconds: float, *, reason: str) -> None:
        self.heard.append(reason)
        if self.failing:
            raise OSError("disk full")

    def online_finished(self, progress: OnlineProgress, attained: bool) -> None:
        self.heard.append(f"finished {attained}")

    def count(self, name: str, amount: int) -> None:
        self.heard.append(f"{name} {amount}")

    def step_times(self, status: StepTimeStatus) -> None:
        self.heard.append(f"safe mode: {status.safe_mode}")

    def offline(self, prospects: OfflineProspects) -> None:
        self.heard.append(f"late: {prospects.late_requests}")


def test_an_instrument_that_fails_is_switched_off_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken, good = Recorder(failing=True), Recorder()
    instruments = Instruments([broken, good])
    for _ in range(3):
        instruments.step(BatchShape(decode_rows=1), 0.1, reason="idle")
    assert broken.heard == ["idle"]
    assert good.heard == ["idle"] * 3
    assert "disk full" in caplog.text


STATUS = StepTimeStatus(
    regimes=(
        RegimeReport(
            regime="decode",
            samples=50,
            p50_error=0.1,
            p90_error=0.2,
            p95_error=0.3,
            p99_error=0.4,
            signed_bias=-0.05,
            under_prediction_rate=0.6,
            coverage=0.94,
            drift_ratio=1.7,
        ),
    ),
    drift_ratio=1.7,
    safe_mode="drift: decode iterations take 1.70 times what is predicted",
)


def test_a_status_is_made_only_for_those_who_want_it() -> None:
    asked: list[str] = []

    def status() -> StepTimeStatus:
        asked.append("once")
        return STATUS

    Instruments([]).step_times(status)
    assert asked == []
    listeners = [Recorder(), Recorder()]
    Instruments([*listeners]).step_times(status)
    assert asked == ["once"]
    assert [listener.heard for listener in listeners] == [[f"safe mode: {STATUS.safe_mode}"]] * 2


def test_prometheus_counts_what_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = prometheus_client.CollectorRegistry()
    for kind in ("Histogram", "Counter", "Gauge"):
        original = getattr(prometheus_client, kind)
        monkeypatch.setattr(
            prometheus_client, kind, lambda *a, _o=original, **k: _o(*a, registry=registry, **k)
        )
    instrument = PrometheusInstrument(prometheus_client)
    instrument.step(BatchShape(extend_tokens=40), 0.2, reason="offline_prefill")
    instrument.count("rows_released", 3)
    instrument.step_times(STATUS)
    progress = OnlineProgress(arrival_s=0.0, ttft_slo_s=1.0, tpot_slo_s=0.1)
    progress.note(1, 0.5)
    progress.note(3, 0.7)
    instrument.online_finished(progress, attained=True)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, labels)

    assert value("echo:prefill_tokens_total", reason="offline_prefill") == 40
    assert value("echo:events_total", event="rows_released") == 3
    assert value("echo:online_requests_total", slo="attained") == 1
    assert value("echo:online_ttft_seconds_sum") == pytest.approx(0.5)
    assert value("echo:online_tpot_seconds_sum") == pytest.approx(0.1)
    assert value("echo:step_time_error", regime="decode", quantile="0.95") == 0.3
    assert value("echo:step_time_bias", regime="decode") == -0.05
    assert value("echo:step_time_under_prediction_rate", regime="decode") == 0.6
    assert value("echo:step_time_coverage", regime="decode") == 0.94
    assert value("echo:step_time_drift_ratio") == 1.7
    assert value("echo:step_time_safe_mode") == 1


def test_without_metrics_nothing_is_registered_or_reported() -> None:
    before = set(prometheus_client.REGISTRY._names_to_collectors)
    prometheus_instruments(enabled=False).count("rows_released", 1)
    assert set(prometheus_client.REGISTRY._names_to_collectors) == before


def prospects(*laxities_s: float | None) -> OfflineProspects:
    """One class of ten requests for every laxity, late if it is below 0."""
    outlook = tuple(
        Outlook(
            due_s=100.0,
            requests=10,
            work=1_000.0,
            finish_s=None if laxity_s is None else 100.0 - laxity_s,
            laxity_s=laxity_s,
            late_requests=10 if laxity_s is not None and laxity_s < 0 else 0,
            urgent=False,
            hopeless=False,
            urgency=1.0,
        )
        for laxity_s in laxities_s
    )
    return OfflineProspects(now_s=0.0, jobs_waiting=3, work_per_s=250.0, outlook=outlook)


def instrument_of(registry: prometheus_client.CollectorRegistry) -> PrometheusInstrument:
    kinds = {
        kind: partial(getattr(prometheus_client, kind), registry=registry)
        for kind in ("Histogram", "Counter", "Gauge")
    }
    return PrometheusInstrument(SimpleNamespace(**kinds))


def test_prometheus_says_what_will_be_late_and_how_tight_it_is() -> None:
    registry = prometheus_client.CollectorRegistry()
    Instruments([instrument_of(registry)]).offline(prospects(30.0, -5.0, None))
    assert registry.get_sample_value("echo:offline_late_requests") == 10.0
    assert registry.get_sample_value("echo:offline_least_laxity_seconds") == -5.0
    assert registry.get_sample_value("echo:offline_work_per_second") == 250.0
    assert registry.get_sample_value("echo:offline_jobs_waiting") == 3.0
