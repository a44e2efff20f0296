from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from echo_sglang.errors import WorkloadError
from eval.harness.corpus import read_documents, read_passages
from eval.harness.workload import Order, WorkloadConfig, build_workload, draw_arrivals

SHUFFLED = WorkloadConfig(seed=7)
SORTED = WorkloadConfig(seed=7, order=Order.SORTED)


def test_the_same_seed_gives_the_same_workload() -> None:
    assert build_workload(SHUFFLED).sha256 == build_workload(WorkloadConfig(seed=7)).sha256


def test_another_seed_or_order_gives_another_workload() -> None:
    hashes = {build_workload(c).sha256 for c in (SHUFFLED, SORTED, WorkloadConfig(seed=8))}
    assert len(hashes) == 3


def test_the_order_changes_neither_chat_nor_the_set_of_questions() -> None:
    shuffled, ordered = build_workload(SHUFFLED), build_workload(SORTED)
    assert shuffled.online == ordered.online
    assert {r.message for r in shuffled.offline} == {r.message for r in ordered.offline}
    assert len({r.message for r in shuffled.offline}) == 24 * 12


def test_sorted_questions_keep_each_document_together_and_shuffled_ones_do_not() -> None:
    def changes(order: Order) -> int:
        documents = [
            r.document for r in build_workload(WorkloadConfig(seed=7, order=order)).offline
        ]
        return sum(a != b for a, b in itertools.pairwise(documents))

    assert changes(Order.SORTED) == 23
    # 287 neighbours, 1 in 24 of them of the same document by chance.
    assert changes(Order.SHUFFLED) > 240


def test_questions_about_one_document_share_a_prefix_of_900_words() -> None:
    requests = [r for r in build_workload(SHUFFLED).offline if r.document == 0]
    prefixes = {r.message.removesuffix(r.question) for r in requests}
    assert len(requests) == 12
    assert [len(prefix.split()) for prefix in prefixes] == [901]  # 900 and "Question:"


def test_chat_messages_have_60_to_200_words_and_no_prefix_in_common_with_documents() -> None:
    workload = build_workload(SHUFFLED)
    assert all(60 <= len(r.message.split()) <= 200 for r in workload.online)
    documents = {r.message[:40] for r in workload.offline}
    assert not any(r.message[:40] in documents for r in workload.online)


def test_arrivals_are_ordered_inside_the_window_and_hold_bursts_of_five() -> None:
    arrivals_s = draw_arrivals(SHUFFLED, np.random.default_rng(3))
    assert arrivals_s == sorted(arrivals_s)
    assert arrivals_s[0] >= 0 and arrivals_s[-1] < 90
    # Bursts at half periods: 15, 45 and 75 s.
    assert [arrivals_s.count(t) for t in (15.0, 45.0, 75.0)] == [5, 5, 5]


def test_arrivals_beside_bursts_come_at_the_poisson_rate() -> None:
    config = WorkloadConfig(seed=1, window_s=40_000, burst_size=0)
    arrivals_s = draw_arrivals(config, np.random.default_rng(1))
    # 10,000 expected, standard deviation 100.
    assert abs(len(arrivals_s) - 10_000) < 400


def test_online_alone_is_the_same_chat_without_documents() -> None:
    workload = build_workload(SHUFFLED)
    alone = workload.without_offline()
    assert alone.online == workload.online
    assert alone.offline == ()


def test_too_many_documents_are_refused_with_the_number_that_exists() -> None:
    available = len(read_documents(num_words=900))
    with pytest.raises(WorkloadError, match=f"carries {available}"):
        build_workload(WorkloadConfig(seed=1, num_documents=available + 1))


@pytest.mark.parametrize(
    "wrong",
    [{"window_s": 0}, {"online_words_min": 10}, {"questions_per_document": 13}],
    ids=["window", "words", "questions"],
)
def test_impossible_numbers_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(WorkloadError):
        WorkloadConfig(seed=1, **wrong)


def test_documents_are_exact_in_length_and_do_not_overlap() -> None:
    documents = read_documents(num_words=900)
    assert {document.num_words for document in documents} == {900}
    assert len({document.text for document in documents}) == len(documents)


def test_passages_are_docstrings_of_the_asked_length() -> None:
    passages = read_passages(min_words=200)
    assert min(passage.num_words for passage in passages) >= 200
    assert "argparse" in {passage.title for passage in passages}
