"""SGLang's own publisher of forward pass metrics, received and checked against a trace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.observability.forward_pass_metrics import (
    ForwardPassMetrics,
    ScheduledRequestMetrics,
    _FpmPublisherThread,
)
from typer.testing import CliRunner, Result

from echo_sglang.adapter.forward_pass import ForwardPassRecorder
from echo_sglang.cli.main import app
from echo_sglang.domain.step_record import StepRecord
from tests.unit.trace_kit import lines, load

TIMEOUT_S = 30.0


class Publisher:
    """Publishes what SGLang would of given iterations; a heartbeat a second while idle."""

    def __init__(self, ipc_name: str) -> None:
        self.ipc_name = ipc_name
        self.thread = _FpmPublisherThread(f"{ipc_name}.0", worker_id="w", dp_rank=0)
        self.thread.set_idle(True)

    def publish(self, one: StepRecord, **changes: Any) -> None:
        values = {
            "num_prefill_requests": one.sums.rows,
            "sum_prefill_tokens": one.sums.tokens,
            "sum_prefill_kv_tokens": one.sums.prefix_tokens,
            "num_decode_requests": one.decode_rows,
            "sum_decode_kv_tokens": one.decode_kv_tokens + one.decode_rows,
            **changes,
        }
        scheduled = ScheduledRequestMetrics(**values)
        self.thread.publish(
            ForwardPassMetrics(wall_time=one.device_s, scheduled_requests=scheduled)
        )


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    publisher = Publisher(f"ipc://{tmp_path}/fpm")
    yield publisher
    publisher.thread.shutdown()


def received(recorder: ForwardPassRecorder, count: int) -> list[Any]:
    """The passes once `count` have come; three more heartbeats end a vain wait."""
    beats = sum(one.is_heartbeat for one in recorder.passes)
    while True:
        seen = recorder.passes
        found = [one for one in seen if not one.is_heartbeat]
        if len(found) >= count or len(seen) - len(found) >= beats + 3:
            return found


def test_every_message_is_received_in_order_and_heartbeats_are_known(publisher: Publisher) -> None:
    records = load(200)
    with ForwardPassRecorder(publisher.ipc_name) as recorder:
        assert recorder.wait_for_first(TIMEOUT_S)
        assert all(one.is_heartbeat for one in recorder.passes)
        for one in records:
            publisher.publish(one)
        found = received(recorder, len(records))
    assert [one.extend_tokens for one in found] == [one.sums.tokens for one in records]
    assert [one.seconds for one in found] == [one.device_s for one in records]
    first = found[0].sequence
    assert [one.sequence for one in found] == list(range(first, first + len(records)))


def test_nobody_there_is_said_not_waited_for(tmp_path: Path) -> None:
    with ForwardPassRecorder(f"ipc://{tmp_path}/nobody") as recorder:
        assert not recorder.wait_for_first(0.0)
    assert recorder.passes == ()


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(lines(load(60))))
    return path


def check(
    publisher: Publisher, trace: Path, monkeypatch: pytest.MonkeyPatch, *options: str, **wrong: int
) -> Result:
    """echo-sglang check while the iterations of `trace` are published; `wrong` in the tenth."""
    recorders: list[ForwardPassRecorder] = []

    class Recorder(ForwardPassRecorder):
        def __init__(self, ipc_name: str, *, rank: int) -> None:
            super().__init__(ipc_name, rank=rank)
            recorders.append(self)

    def work(_: float) -> None:
        if recorders[0].passes:
            return
        assert recorders[0].wait_for_first(TIMEOUT_S)
        for index, one in enumerate(load(60)):
            publisher.publish(one, **(wrong if index == 9 else {}))
        received(recorders[0], 60)

    monkeypatch.setattr("echo_sglang.adapter.forward_pass.ForwardPassRecorder", Recorder)
    monkeypatch.setattr("echo_sglang.cli.check.let_pass", work)
    arguments = ["check", str(trace), "--ipc-name", publisher.ipc_name, *options]
    return CliRunner().invoke(app, arguments)


def test_check_agrees_with_a_trace_that_is_right(
    publisher: Publisher, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = check(publisher, trace, monkeypatch, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["agrees"] and found["compared"] == 60


def test_check_ends_with_1_and_the_iteration_where_the_two_differ(
    publisher: Publisher, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = check(publisher, trace, monkeypatch, sum_prefill_kv_tokens=123_456)
    assert result.exit_code == 1, result.output
    assert "prefix_tokens" in result.stdout and "123456" in result.stdout


def test_check_of_a_trace_that_is_not_there_is_bad_input(
    publisher: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = check(publisher, tmp_path / "absent", monkeypatch)
    assert result.exit_code == 2
    assert "absent" in result.stderr
