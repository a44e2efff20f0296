from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from echo_sglang.domain.tag import ServiceClass
from echo_sglang.errors import WorkloadError
from echo_sglang.sim.answers import EOS_TOKEN, FIRST_TOKEN, VOCABULARY, Answers
from echo_sglang.sim.arrivals import Lengths, PoissonTraffic
from echo_sglang.sim.documents import DocumentQuestions, Order
from echo_sglang.sim.workload import Request, Segment, Workload, merge, prompt_ids

DOCUMENTS = DocumentQuestions(documents=5, questions=3, document_tokens=100, question_tokens=7)


def request(**fields: Any) -> Request:
    return Request(
        **{"rid": "r", "arrival_s": 0.0, "prompt": (Segment(1, 4),), "output_tokens": 2} | fields
    )


def test_equal_segments_are_equal_tokens_and_others_are_not() -> None:
    one = prompt_ids((Segment(7, 50), Segment(1, 10)))
    other = prompt_ids((Segment(7, 50), Segment(2, 10)))
    assert one[:50] == other[:50]
    assert one[50:] != other[50:]


def test_a_shorter_segment_of_a_seed_is_the_beginning_of_a_longer_one() -> None:
    assert prompt_ids((Segment(9, 512),))[:333] == prompt_ids((Segment(9, 333),))


def test_prompts_hold_no_special_tokens() -> None:
    ids = prompt_ids((Segment(3, 5000),))
    assert min(ids) >= FIRST_TOKEN and max(ids) < VOCABULARY
    assert len(ids) == 5000


def test_answers_end_with_eos_at_their_length_and_differ_before() -> None:
    answers = Answers()
    answers.expect("a", 5)
    answers.expect("b", 5)
    a = answers.next_tokens([("a", i) for i in range(5)])
    b = answers.next_tokens([("b", i) for i in range(5)])
    assert a[-1] == b[-1] == EOS_TOKEN
    assert EOS_TOKEN not in a[:-1] + b[:-1]
    assert len(set(a[:-1])) == 4 and not set(a[:-1]) & set(b[:-1])


def test_poisson_traffic_has_its_rate_and_lengths() -> None:
    traffic = PoissonTraffic(rate_per_s=2.0, window_s=5_000, prompt=Lengths(mean=600, spread=0.5))
    requests = traffic.requests(3)
    # 10,000 expected, standard deviation 100.
    assert abs(len(requests) - 10_000) < 400
    lengths = [r.prompt_tokens for r in requests]
    assert min(lengths) >= 300 and max(lengths) <= 900
    assert abs(sum(lengths) / len(lengths) - 600) < 10


def test_the_seed_decides_everything() -> None:
    traffic = PoissonTraffic(rate_per_s=1.0, window_s=60)
    first, again, other = (merge(traffic.requests(seed)).sha256 for seed in (1, 1, 2))
    assert first == again != other


def test_bursts_arrive_at_half_periods() -> None:
    traffic = PoissonTraffic(rate_per_s=0.0, window_s=90, burst_size=5, burst_every_s=30)
    assert [r.arrival_s for r in traffic.requests(1)] == [15.0] * 5 + [45.0] * 5 + [75.0] * 5


def test_questions_about_a_document_share_just_the_document() -> None:
    requests = DOCUMENTS.requests(1)
    by_document: dict[Segment, list[Request]] = {}
    for r in requests:
        by_document.setdefault(r.prompt[0], []).append(r)
    assert sorted(map(len, by_document.values())) == [3] * 5
    assert len({r.prompt[1] for r in requests}) == 15
    assert all(r.is_offline and r.prompt_tokens == 107 for r in requests)


def test_the_order_changes_only_the_order() -> None:
    shuffled = DOCUMENTS.requests(1)
    ordered = replace(DOCUMENTS, order=Order.SORTED).requests(1)
    assert sorted(shuffled, key=lambda r: r.rid) == sorted(ordered, key=lambda r: r.rid)
    assert sum(a.prompt[0] != b.prompt[0] for a, b in itertools.pairwise(ordered)) == 4
    assert sum(a.prompt[0] != b.prompt[0] for a, b in itertools.pairwise(shuffled)) > 4


def test_merging_keeps_time_order_and_the_order_of_parts() -> None:
    online = [request(rid="a", arrival_s=0.0), request(rid="c", arrival_s=5.0)]
    offline = [request(rid="b", arrival_s=0.0, service_class=ServiceClass.OFFLINE)]
    workload = merge(online, offline)
    assert [r.rid for r in workload.requests] == ["a", "b", "c"]
    assert [r.rid for r in workload.online] == ["a", "c"]
    assert [r.rid for r in workload.offline] == ["b"]


@pytest.mark.parametrize(
    ("requests", "said"),
    [
        ([], "empty"),
        ([request(arrival_s=-1.0)], "not below 0"),
        ([request(arrival_s=float("nan"))], "finite"),
        ([request(rid="a", arrival_s=2.0), request(rid="b", arrival_s=1.0)], "sort them"),
        ([request(), request()], "same rid"),
        ([request(prompt=())], "at least one token"),
        ([request(output_tokens=0)], "output tokens"),
        ([request(output_tokens=9, max_new_tokens=8)], "9 output tokens of 8 allowed"),
    ],
)
def test_impossible_workloads_are_refused(requests: list[Request], said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        Workload(tuple(requests))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PoissonTraffic(rate_per_s=-1.0, window_s=10),
        lambda: PoissonTraffic(rate_per_s=1.0, window_s=0),
        lambda: Lengths(mean=0),
        lambda: Lengths(mean=10, spread=1.0),
        lambda: DocumentQuestions(documents=0),
    ],
)
def test_impossible_recipes_are_refused(wrong: Any) -> None:
    with pytest.raises(WorkloadError):
        wrong()
