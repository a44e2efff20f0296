"""The pieces between a real server's run and its emulation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.step_record import ExtendSums, StepMode, StepRecord, TraceHeader
from echo_sglang.estimate.step_trace import StepTrace
from echo_sglang.sim.catalog import device_named
from echo_sglang.sim.processes import run_apart
from echo_sglang.sim.workload import prompt_ids
from eval.harness.corpus import read_documents
from eval.harness.records import OfflineRecord, OnlineRecord, RunRecord
from eval.harness.workload import OfflineRequest, OnlineRequest, Workload, WorkloadConfig
from eval.validation_cpu import compare, setup_of, text
from eval.validation_replay import (
    Answer,
    Emulation,
    ScatteredDevice,
    answers_of,
    counted_from_sending,
    emulate,
    requests_as_sent,
    shared_tokens,
    steady_rates,
)
from eval.validation_server import Measured, Plan, Probe, edge_seconds, host_seconds
from tests.unit.estimate.test_profile import profile

HEAD = [1, 2, 3]
TOKENS = {
    "hello": [*HEAD, 40, 41],
    "doc A, one": [*HEAD, 7, 7, 7, 50],
    "doc A, two": [*HEAD, 7, 7, 7, 60, 61],
    "doc B, one": [*HEAD, 8, 8, 50],
}


def step(number: int, ended_s: float, step_s: float, *, prompt: int = 0) -> StepRecord:
    return StepRecord(
        iteration=number,
        mode=StepMode.EXTEND if prompt else StepMode.DECODE,
        ended_s=ended_s,
        step_s=step_s,
        host_s=0.0,
        device_s=step_s,
        sums=ExtendSums(rows=1 if prompt else 0, tokens=prompt),
        decode_rows=0 if prompt else 1,
    )


def trace(*records: StepRecord) -> StepTrace:
    return StepTrace(header=TraceHeader(identity={}), records=records, torn=())


def workload() -> Workload:
    offline = [(0, "doc A, one"), (0, "doc A, two"), (1, "doc B, one")]
    return Workload(
        config=WorkloadConfig(seed=1),
        online=(OnlineRequest(index=0, arrival_s=2.0, message="hello", tokens_out=24),),
        offline=tuple(
            OfflineRequest(
                index=index,
                document=document,
                title="",
                question="",
                message=message,
                tokens_out=16,
            )
            for index, (document, message) in enumerate(offline)
        ),
    )


def played(sent_s: float) -> RunRecord:
    online = OnlineRecord(
        index=0, due_s=2.0, sent_s=sent_s, first_s=3.0, last_s=4.0, stopped_s=4.0, max_gap_s=0.1,
        prompt_tokens=5, output_tokens=24, service_tier="default", error=None,
    )  # fmt: skip
    return RunRecord(
        workload_sha256="", window_s=10.0, num_offline_submitted=3, online=(online,), offline=()
    )


def test_a_real_first_token_counts_from_when_its_message_was_sent() -> None:
    sent = counted_from_sending(played(sent_s=2.4))
    assert sent.online[0].ttft_s == pytest.approx(0.6)
    assert sent.online[0].tpot_s == played(sent_s=2.4).online[0].tpot_s


def test_the_host_s_time_is_what_lies_between_iterations_without_a_wait() -> None:
    """Gaps of 3, 5 and 4 ms, and one of 2 s in which nobody was there."""
    steps = trace(
        step(1, 1.000, 0.1), step(2, 1.103, 0.1), step(3, 1.208, 0.1), step(4, 3.308, 0.1),
        step(5, 3.412, 0.1),
    )  # fmt: skip
    assert host_seconds(steps) == pytest.approx(0.004)
    assert host_seconds(trace(step(1, 1.0, 0.1))) == 0.0


def test_the_edge_is_what_a_lone_client_waits_beyond_its_iterations() -> None:
    """A prompt before the first probe, decode rows and the last probe do not count. The first
    waits 20 ms beyond one iteration, the second 30 ms beyond two."""
    steps = StepTrace(
        header=TraceHeader(identity={}, started_unix_s=5000.0),
        records=(
            step(1, 1.0, 0.5, prompt=99), step(2, 1.1, 0.1), step(3, 2.10, 0.10, prompt=50),
            step(4, 3.12, 0.12, prompt=60), step(5, 3.2, 0.08, prompt=10),
            step(6, 9.0, 0.3, prompt=9),
        ),
        torn=(),
    )  # fmt: skip
    probes = [
        Probe(sent_unix_s=5002.0, ttft_s=0.12),
        Probe(sent_unix_s=5003.0, ttft_s=0.23),
        Probe(sent_unix_s=5004.0, ttft_s=9.0),
    ]
    assert edge_seconds(probes, steps) == pytest.approx(0.025)


def test_a_scattered_device_repeats_itself_only_in_another_run() -> None:
    shape = BatchShape(decode_rows=2, decode_kv_tokens=100)
    plain = device_named("RTX4090:Llama-3.1-8B")
    first, again = (ScatteredDevice([plain], (0.5, 1.0, 2.0), seed=3) for _ in range(2))
    times = [first.seconds(shape) for _ in range(20)]
    assert times == [again.seconds(shape) for _ in range(20)]
    assert {round(seconds / plain.seconds(shape), 6) for seconds in times} == {0.5, 1.0, 2.0}


def test_of_two_devices_the_mean_counts() -> None:
    class Fixed:
        def __init__(self, seconds: float) -> None:
            self._seconds = seconds

        def seconds(self, shape: BatchShape) -> float:
            return self._seconds * shape.decode_rows

    both = ScatteredDevice([Fixed(1.0), Fixed(2.0)], (2.0,), seed=1)
    assert both.seconds(BatchShape(decode_rows=10)) == pytest.approx(30.0)


def test_shared_tokens_stop_at_the_first_difference_and_before_the_last_token() -> None:
    assert shared_tokens([[1, 2, 3, 4], [1, 2, 9, 4]]) == 2
    assert shared_tokens([[1, 2], [1, 2]]) == 1
    assert shared_tokens([[1, 2, 3]]) == 2


def test_emulated_prompts_share_exactly_what_the_real_ones_share() -> None:
    requests = {r.rid: r for r in requests_as_sent(workload(), played(2.25), TOKENS)}
    assert requests["on-0"].arrival_s == 2.25
    assert not requests["on-0"].is_offline
    assert [requests[f"off-{i}"].is_offline for i in range(3)] == [True] * 3
    names = {"on-0": "hello", "off-0": "doc A, one", "off-1": "doc A, two", "off-2": "doc B, one"}
    ids = {rid: list(prompt_ids(requests[rid].prompt)) for rid in names}
    for rid, name in names.items():
        assert len(ids[rid]) == len(TOKENS[name])
        for other, other_name in names.items():
            if other != rid:
                real = shared_tokens([TOKENS[name], TOKENS[other_name]])
                assert shared_tokens([ids[rid], ids[other]]) == real, (name, other_name)


def test_the_emulated_server_has_the_limits_of_the_measured_one(tmp_path: Path) -> None:
    limits = {"kv_tokens": 900, "context_tokens": 800, "rows": 7, "chunk_tokens": 128}
    plan = Plan(results=tmp_path, model_path=tmp_path)
    measured = Measured(record=played(2.0), host_s=0.004, edge_s=0.02, limits=limits)
    setup = setup_of(plan, measured)
    assert (setup.kv_tokens, setup.max_running, setup.chunk_tokens) == (900, 7, 128)
    assert setup.host_s == 0.004
    assert setup.echo is not None
    assert setup.echo.profile == str(tmp_path / "before.json")


def test_the_comparison_says_what_holds() -> None:
    real = {"offline_tokens_per_s": 100.0, "offline_per_s": 1.0, "ttft_p50_s": 1.0,
            "ttft_p99_s": 2.0, "tpot_p50_s": 0.1, "tpot_p99_s": 0.1}  # fmt: skip
    emulated = real | {"offline_tokens_per_s": 94.0, "ttft_p50_s": 1.04}
    fast, slow = (emulated | {"ttft_p50_s": seconds} for seconds in (0.5, 3.0))
    table = compare(real, [slow, emulated, fast], edge_s=0.05).set_index("metric")
    assert tuple(table.loc["TTFT p50 s", ["least", "most"]]) == pytest.approx((0.55, 3.05))
    assert not table.loc["offline tokens/s", "holds"]
    assert table.loc["TTFT p50 s", "error"] == pytest.approx(0.09)
    assert table.loc["TTFT p50 s", "holds"]
    assert table.loc["TPOT p50 s", "holds"] is None
    assert "-6.0%" in text(table.reset_index())


def test_throughput_is_counted_once_the_pool_has_settled() -> None:
    answers = [Answer(30.0, 1000), Answer(30.1, 700), Answer(60.0, 200), Answer(60.1, 5000)]
    rates = steady_rates(answers, window_s=60.0)
    assert rates == {"offline_per_s": 2 / 30.0, "offline_tokens_per_s": 900 / 30.0}


def test_real_answers_count_with_what_was_read_and_written() -> None:
    answered = OfflineRecord(
        index=0, document=0, done_s=31.5, prompt_tokens=90, cached_tokens=80, output_tokens=16,
        service_tier="flex", text="", error=None,
    )  # fmt: skip
    failed = replace(answered, index=1, error="HTTP 500")
    assert answers_of(replace(played(2.0), offline=(answered, failed))) == [Answer(31.5, 106)]


def test_documents_last_for_the_window_as_far_as_there_are_any(tmp_path: Path) -> None:
    plan = Plan(results=tmp_path, model_path=tmp_path, window_s=60.0)
    assert plan.workload().config.num_documents == 24
    endless = replace(plan, window_s=6000.0)
    known = endless.workload().config.num_documents
    assert known == len(read_documents(num_words=endless.workload().config.document_words))


@pytest.mark.slow
def test_an_emulation_with_a_profile_answers_what_was_sent(tmp_path: Path) -> None:
    """The profile is of an invented machine, so the emulated server has to be forced to it."""
    plan = Plan(results=tmp_path, model_path=tmp_path)
    plan.before.profile.write_text(profile().to_json(), encoding="utf-8")
    limits = {"kv_tokens": 1000, "context_tokens": 500, "rows": 8, "chunk_tokens": 128}
    measured = Measured(record=played(2.25), host_s=0.002, edge_s=0.0, limits=limits)
    given = Emulation(
        requests=requests_as_sent(workload(), measured.record, TOKENS),
        setup=setup_of(plan, measured),
        devices=(f"profile:{plan.before.profile}",),
        window_s=60.0,
        ratios=(0.9, 1.1),
    )
    summary = next(run_apart(emulate, [given]))
    assert (summary["online_requests"], summary["offline_done"]) == (1, 3)
    assert summary["attainment"] == 1.0
