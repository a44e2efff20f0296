"""The offline queue with SGLang's own request objects."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

sglang_utils = pytest.importorskip("sglang.srt.utils")

from sglang.srt.managers.io_struct import TokenizedGenerateReqInput  # noqa: E402
from sglang.srt.sampling.sampling_params import SamplingParams  # noqa: E402

from echo_sglang.adapter.offline_queue import OfflineQueue  # noqa: E402
from echo_sglang.adapter.requests import EchoReq, can_wait_as_tokens  # noqa: E402
from echo_sglang.domain.tag import RequestTag, ServiceClass  # noqa: E402
from echo_sglang.policy.offline_pool import PoolSettings  # noqa: E402

OFFLINE = RequestTag(service_class=ServiceClass.OFFLINE)


def tokenized(rid: str, tokens: list[int], **fields: Any) -> TokenizedGenerateReqInput:
    return TokenizedGenerateReqInput(
        rid=rid,
        input_text=None,
        input_ids=array("q", tokens),
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=SamplingParams(max_new_tokens=8),
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
        **fields,
    )


def build(recv: TokenizedGenerateReqInput) -> EchoReq:
    return EchoReq(recv.rid, None, recv.input_ids, recv.sampling_params, tag=OFFLINE)


def queue(refused: tuple[str, ...] = ()) -> OfflineQueue:
    return OfflineQueue(PoolSettings(), lambda recv: None if recv.rid in refused else build(recv))


def put(q: OfflineQueue, recv: TokenizedGenerateReqInput, now_s: float = 5.0) -> None:
    q.add_tokenized(recv, OFFLINE, now_s=now_s, deadline_s=None, cached_tokens=0, max_new_tokens=8)


def test_a_request_is_built_once_and_only_when_it_is_reached() -> None:
    built: list[str] = []

    def counting(recv: TokenizedGenerateReqInput) -> EchoReq:
        built.append(recv.rid)
        return build(recv)

    q = OfflineQueue(PoolSettings(), counting)
    put(q, tokenized("a", [1, 2, 3]))
    put(q, tokenized("b", [1, 2, 4]))
    assert built == []
    assert q.materialize("a") is q.materialize("a")
    assert built == ["a"]
    assert [req.rid for req in q.built_reqs()] == ["a"]


def test_a_request_that_gave_way_keeps_its_place_in_time() -> None:
    q = queue()
    put(q, tokenized("a", [1, 2, 3]), now_s=5.0)
    req = q.materialize("a")
    assert req is not None
    q.admitted("a")
    assert len(q) == 0
    req.output_ids.extend([7, 8])
    q.add_req(req, now_s=90.0, parked_at_step=33, rest_steps=4)
    entry = q.pool.get("a")
    assert entry is not None
    assert entry.arrival_s == 5.0
    assert list(q.tokens("a")) == [1, 2, 3, 7, 8]
    assert entry.num_tokens == 5
    assert entry.max_new_tokens == 6  # 8 wanted, 2 there
    assert (entry.parked_at_step, entry.rest_steps) == (33, 4)


@pytest.mark.parametrize(("held", "told"), [(0, False), (3, False), (4, True), (7, True)])
def test_who_is_admitted_is_told_of_only_if_its_last_page_may_be_cached(
    held: int, told: bool
) -> None:
    q = OfflineQueue(PoolSettings(), build, page_size=4)
    put(q, tokenized("a", [1, 2, 3, 4, 5, 6, 7, 8]))
    heard: list[list[int]] = []
    q.listener = lambda tokens, *_: heard.append(list(tokens))
    req = q.materialize("a")
    assert req is not None
    req.prefix_len = held
    q.admitted("a")
    assert heard == ([[1, 2, 3, 4, 5, 6, 7, 8]] if told else [])
    assert "a" not in q


def test_requests_of_other_cache_namespaces_share_no_prefix_in_the_index() -> None:
    q = queue()
    put(q, tokenized("plain", [1, 2, 3]))
    put(q, tokenized("salted", [1, 2, 3], cache_salt="tenant"))
    assert q.pool.index.uses(array("q", [1, 2, 3]), 3).waiting == 1
    assert list(q.tokens("salted")) == [1, 2, 3]
    assert q.namespace_of("salted") == (None, "tenant")


def test_an_abort_takes_exactly_what_it_names() -> None:
    q = queue()
    for rid in ("job-1", "job-2", "other"):
        put(q, tokenized(rid, [1, 2, 3]))
    assert len(q.take_matching("job-1", everything=False)) == 1
    assert len(q.take_matching("job", everything=False)) == 1
    assert len(q.take_matching("", everything=True)) == 1
    assert len(q) == len(q.pool) == 0


def test_a_request_that_sglang_refuses_leaves_the_queue() -> None:
    q = queue(refused=("bad",))
    put(q, tokenized("bad", [1, 2, 3]))
    assert q.materialize("bad") is None
    assert "bad" not in q
    assert q.materialize("unknown") is None


def test_what_must_be_prepared_at_arrival_does_not_wait_as_tokens() -> None:
    assert can_wait_as_tokens(tokenized("a", [1]))
    assert not can_wait_as_tokens(tokenized("a", [1], session_id="chat"))
    grammar = tokenized("a", [1])
    grammar.sampling_params.regex = "[ab]+"
    assert not can_wait_as_tokens(grammar)


def test_a_job_is_charged_for_what_was_computed_and_produced_but_not_for_giving_way() -> None:
    q = queue()
    tag = RequestTag(service_class=ServiceClass.OFFLINE, job="nightly", weight=2.0)
    recv = tokenized("a", list(range(1, 101)))
    q.add_tokenized(recv, tag, now_s=5.0, deadline_s=None, cached_tokens=0, max_new_tokens=8)
    req = q.materialize("a")
    assert isinstance(req, EchoReq)
    req.tag = tag
    req.prefix_len = 40  # as SGLang's adder finds it in the cache
    q.admitted("a")
    (job,) = q.pool.shares.jobs()
    assert (job.name, job.weight, job.waiting, job.running) == ("nightly", 2.0, 0, 1)
    assert (job.computed_tokens, job.cached_tokens) == (60, 40)
    req.output_ids.extend([7, 8, 9])
    q.add_req(req, now_s=6.0, parked_at_step=3)
    assert (job.waiting, job.running, job.output_tokens) == (1, 0, 3)
    req.prefix_len = 0
    q.admitted("a")
    assert (job.computed_tokens, job.cached_tokens) == (60, 40)
    req.output_ids.extend([7, 8, 9, 10, 11])
    q.ended(req)
    q.ended(req)
    assert (job.waiting, job.running, job.output_tokens) == (0, 0, 8)
    assert job.recent_tokens(5.0) == 60 + 2 * 8


def test_requests_of_different_adapters_share_no_prefix_before_they_are_built() -> None:
    queue = OfflineQueue(PoolSettings(), lambda _: None)
    prompt = list(range(100))
    for rid, lora in (("a", "one"), ("b", "one"), ("c", "two"), ("d", None)):
        request = tokenized(rid, prompt, lora_id=lora, extra_key="k")
        queue.add_tokenized(
            request, OFFLINE, now_s=0.0, deadline_s=None, cached_tokens=0, max_new_tokens=8
        )
    # As SGLang joins them when it builds a request.
    assert queue.namespace_of("a") == ("kone", None)
    assert queue.namespace_of("d") == ("k", None)
    assert list(queue.tokens("a")) == prompt

    def waiting_with(extra_key: str) -> int:
        path = queue.namespaces.mark(extra_key, None) + array("q", prompt)
        return queue.pool.index.uses(path, len(path)).waiting

    assert [waiting_with(key) for key in ("kone", "ktwo", "k")] == [2, 1, 1]
