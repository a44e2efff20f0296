from __future__ import annotations

from dataclasses import replace

import pytest

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.sim.catalog import device_named
from echo_sglang.sim.documents import DocumentQuestions
from echo_sglang.sim.limit import PhysicalLimit, least_seconds
from echo_sglang.sim.metrics import Slo, optimal_hit_rate, summarise_requests
from echo_sglang.sim.records import BatchRows, RequestRecord, StepLog
from echo_sglang.sim.workload import Request, Segment

SLO = Slo(ttft_s=0.5, tpot_s=0.05)
DEVICE = device_named("A100-80G:Llama-3.1-8B")


def online(rid: str, *times_s: float, finish: str | None = "stop") -> RequestRecord:
    record = RequestRecord(
        Request(rid=rid, arrival_s=1.0, prompt=(Segment(1, 10),), output_tokens=len(times_s))
    )
    for count, time_s in enumerate(times_s, start=1):
        record.receive(count, time_s)
    record.finish = finish
    record.done_s = times_s[-1] if times_s else None
    return record


def offline(rid: str, done_s: float, cached_tokens: int = 0) -> RequestRecord:
    request = Request(
        rid=rid,
        arrival_s=0.0,
        prompt=(Segment(1, 100),),
        output_tokens=1,
        service_class=ServiceClass.OFFLINE,
    )
    record = RequestRecord(request, done_s=done_s, finish="stop", cached_tokens=cached_tokens)
    record.received = 20
    return record


def test_attainment_needs_both_bounds_and_a_whole_answer() -> None:
    assert SLO.attained(online("fast", 1.4, 1.44))
    assert not SLO.attained(online("late", 1.6, 1.61))
    assert not SLO.attained(online("slow", 1.4, 1.5))
    assert not SLO.attained(online("aborted", 1.4, finish="abort"))
    assert not SLO.attained(online("silent"))
    assert SLO.attained(online("one token", 1.4))


def test_latencies_count_from_arrival_and_per_token() -> None:
    record = online("r", 1.2, 1.3, 1.7)
    assert record.ttft_s == pytest.approx(0.2)
    assert record.tpot_s == pytest.approx(0.25)
    assert record.max_gap_s == pytest.approx(0.4)


def test_a_request_given_up_has_waited_until_then() -> None:
    silent = online("silent", finish="abort")
    silent.done_s = 61.0
    assert silent.ttft_s is None and silent.waited_s == 60.0
    assert summarise_requests([silent], SLO, window_s=10.0)["ttft_p99_s"] == 60.0


def test_only_what_is_answered_within_the_window_counts() -> None:
    records = [online("a", 1.2, 1.25), offline("b", 5.0, 50), offline("c", 12.0, 90)]
    found = summarise_requests(records, SLO, window_s=10.0)
    assert found["offline_done"] == 1
    assert found["offline_per_s"] == pytest.approx(0.1)
    assert found["offline_tokens_per_s"] == pytest.approx(12.0)
    assert found["offline_hit_rate"] == pytest.approx(0.5)
    assert not found["pool_dry"]


def test_a_pool_that_ran_dry_is_rated_until_then() -> None:
    found = summarise_requests([offline("b", 4.0), offline("c", 5.0)], SLO, window_s=10.0)
    assert found["pool_dry"]
    assert found["offline_per_s"] == pytest.approx(2 / 5)
    assert found["attainment"] is None and found["ttft_p50_s"] is None


def test_tokens_computed_twice_are_counted() -> None:
    record = online("r")
    record.compute(100, 100)
    record.compute(101, 1)
    assert record.recomputed_tokens == 0
    # It lost all but 40 tokens and came back with 102 in context.
    record.compute(102, 62)
    assert record.recomputed_tokens == 61


def test_the_best_hit_rate_computes_each_document_once() -> None:
    requests = DocumentQuestions(documents=3, questions=10).requests(1)
    # Per document 10 * 4060 tokens, of which 4000 + 10 * 60 must be computed.
    assert optimal_hit_rate(requests) == pytest.approx(1 - 4600 / 40_600)
    assert optimal_hit_rate([]) is None


def test_a_repeated_prompt_still_computes_its_last_token() -> None:
    request = offline("x", 1.0).request
    assert optimal_hit_rate([request, request]) == pytest.approx(1 - 101 / 200)


def test_the_physical_limit_counts_documents_once_and_online_work_first() -> None:
    offline_requests = DocumentQuestions(documents=2, questions=4, output_tokens=2).requests(1)
    document_s = DEVICE.least_seconds(BatchShape().with_chunk(4000, 0))
    question_s = DEVICE.least_seconds(BatchShape().with_chunk(60, 4000))
    step_s = DEVICE.least_seconds(BatchShape(decode_rows=1, decode_kv_tokens=4061))
    expected_s = 2 * document_s + 8 * (question_s + step_s)
    assert least_seconds(offline_requests, DEVICE) == pytest.approx(expected_s)
    alone = PhysicalLimit.of(offline_requests, DEVICE, 10.0)
    assert alone is not None
    assert alone.per_s == pytest.approx(8 / expected_s)
    chat = Request(rid="c", arrival_s=0.0, prompt=(Segment(1, 4000),), output_tokens=1)
    beside = PhysicalLimit.of([chat, *offline_requests], DEVICE, 10.0)
    assert beside is not None
    assert beside.per_s == pytest.approx(8 * (1 - document_s / 10.0) / expected_s)
    assert PhysicalLimit.of([chat], DEVICE, 10.0) is None


def test_what_was_done_is_measured_by_its_own_least_time() -> None:
    """Who runs short prompts first finishes more of them, and no more than the limit."""
    cheap = DocumentQuestions(documents=1, questions=4, output_tokens=2).requests(1)
    dear = [
        replace(r, rid=f"dear-{i}", prompt=(Segment(100 + i, 8000),)) for i, r in enumerate(cheap)
    ]
    both = PhysicalLimit.of([*cheap, *dear], DEVICE, 10.0)
    only_cheap = PhysicalLimit.of(cheap, DEVICE, 10.0)
    assert both is not None and only_cheap is not None
    rids = [request.rid for request in cheap]
    least_s = least_seconds(cheap, DEVICE)
    assert both.share(rids, least_s) == pytest.approx(1.0)
    assert both.share(rids[:2], least_s) == pytest.approx(0.5, rel=0.01)
    assert only_cheap.per_s > both.per_s
    whole_s = least_seconds([*cheap, *dear], DEVICE)
    assert both.share(both.seconds, whole_s) == pytest.approx(1.0)


def test_equal_batches_have_equal_fingerprints() -> None:
    def fingerprint(*rows: tuple[str, int, int]) -> str:
        log = StepLog()
        log.add(BatchShape(decode_rows=len(rows)), 0.1, BatchRows(*zip(*rows, strict=True)))
        return log.sha1

    assert fingerprint(("a", 5, 1)) == fingerprint(("a", 5, 1))
    assert len({fingerprint(("a", 5, 1)), fingerprint(("a", 6, 1)), fingerprint(("b", 5, 1))}) == 3
