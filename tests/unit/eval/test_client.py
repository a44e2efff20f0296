from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import httpx

from eval.harness.client import ECHO, PRIORITY, Dialect, LoadClient
from eval.harness.records import UNFINISHED, RunRecord
from eval.harness.workload import (
    OfflineRequest,
    OnlineRequest,
    Workload,
    WorkloadConfig,
)

USAGE = {
    "prompt_tokens": 50,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 40},
}


def workload(*, num_online: int = 1, num_offline: int = 2) -> Workload:
    return Workload(
        config=WorkloadConfig(seed=1, window_s=0.01),
        online=tuple(
            OnlineRequest(index=i, arrival_s=0.0, message="hello", tokens_out=3)
            for i in range(num_online)
        ),
        offline=tuple(
            OfflineRequest(
                index=i, document=i, title="t", question="q", message="d q", tokens_out=3
            )
            for i in range(num_offline)
        ),
    )


def event(content: str | None = None, finish: str | None = None, **more: object) -> str:
    choices = [{"delta": {"content": content}, "finish_reason": finish}]
    return f"data: {json.dumps({'choices': choices, **more})}\n\n"


def stream_of(*events: str) -> httpx.Response:
    return httpx.Response(200, text="".join(events) + "data: [DONE]\n\n")


GOOD_STREAM = (
    event(""),
    event("a"),
    event("b"),
    event("c", "length", service_tier="default"),
    f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n",
)


class FakeServer(httpx.AsyncBaseTransport):
    """Answers like the chat endpoint and keeps what it was sent."""

    def __init__(self, *events: str, status: int = 200, hang: bool = False) -> None:
        self.events = events or GOOD_STREAM
        self.status = status
        self.hang = hang
        self.bodies: list[dict[str, Any]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(await request.aread())
        self.bodies.append(body)
        if self.hang:
            await asyncio.Event().wait()
        if self.status != 200:
            return httpx.Response(self.status, text="no such tier")
        if body.get("stream"):
            return stream_of(*self.events)
        message = {"content": f"answer to {body['messages'][0]['content']}"}
        choices = [{"message": message, "finish_reason": "length"}]
        return httpx.Response(
            200, json={"choices": choices, "usage": USAGE, "service_tier": "flex"}
        )


def play(server: FakeServer, what: Workload, *, dialect: Dialect = ECHO) -> RunRecord:
    ticks = itertools.count()
    client = LoadClient(
        "http://server", dialect=dialect, clock=lambda: 0.001 * next(ticks), transport=server
    )
    return asyncio.run(client.play(what, grace_s=0.05))


def test_a_streamed_answer_is_timed_from_its_first_text_not_from_the_role() -> None:
    run = play(FakeServer(), workload(num_offline=0))
    (record,) = run.online
    # The clock ticks 1 ms a reading and is read once per event: three of them carry text.
    assert record.error is None
    assert record.first_s is not None and record.last_s is not None
    assert record.last_s - record.first_s > record.max_gap_s > 0
    assert record.first_s > record.sent_s + 0.001
    assert (record.output_tokens, record.service_tier) == (3, "default")


def test_offline_answers_carry_tokens_cache_hits_text_and_tier() -> None:
    run = play(FakeServer(), workload(num_online=0))
    assert run.num_offline_submitted == 2
    assert sorted(r.index for r in run.offline) == [0, 1]
    first = run.offline[0]
    assert (first.prompt_tokens, first.cached_tokens, first.output_tokens) == (50, 40, 3)
    assert (first.text, first.service_tier) == ("answer to d q", "flex")


def test_every_request_is_greedy_and_of_fixed_length() -> None:
    server = FakeServer()
    play(server, workload())
    assert len(server.bodies) == 3
    for body in server.bodies:
        assert (body["temperature"], body["ignore_eos"], body["max_tokens"]) == (0, True, 3)


def test_echo_is_told_the_tier_of_offline_requests_only() -> None:
    server = FakeServer()
    play(server, workload())
    tiers = {bool(body.get("stream")): body.get("service_tier") for body in server.bodies}
    assert tiers == {True: None, False: "flex"}


def test_stock_priorities_put_online_above_offline_by_more_than_the_default_threshold() -> None:
    server = FakeServer()
    play(server, workload(), dialect=PRIORITY)
    priorities = {bool(body.get("stream")): body["priority"] for body in server.bodies}
    assert priorities[True] - priorities[False] > 10


def test_a_refused_request_is_recorded_with_what_the_server_said() -> None:
    run = play(FakeServer(status=400), workload())
    assert run.online[0].error is not None
    assert "HTTP 400: no such tier" in run.online[0].error
    assert all(r.error is not None for r in run.offline)


def test_a_stream_that_ends_without_a_reason_or_is_aborted_is_an_error() -> None:
    for events in ((event("a"),), (event("a"), event("b", "abort"))):
        (record,) = play(FakeServer(*events), workload(num_offline=0)).online
        assert record.error is not None and "finish_reason" in record.error
        assert not record.finished


def test_an_error_event_inside_a_stream_is_an_error() -> None:
    failing = f"data: {json.dumps({'error': {'message': 'out of memory'}})}\n\n"
    (record,) = play(FakeServer(event("a"), failing), workload(num_offline=0)).online
    assert record.error is not None and "out of memory" in record.error


def test_what_is_unanswered_at_the_end_is_unfinished_online_and_absent_offline() -> None:
    run = play(FakeServer(hang=True), workload())
    assert [r.error for r in run.online] == [UNFINISHED]
    assert run.offline == ()
    assert run.num_offline_submitted == 2
