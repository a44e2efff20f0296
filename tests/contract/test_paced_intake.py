"""A flood of offline requests is taken in bit by bit, each once and in order; online ones pass."""

from __future__ import annotations

from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang.srt.utils")

from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput
from sglang.srt.managers.scheduler import Scheduler

from echo_sglang.adapter.giving_back import OfflineReturn
from echo_sglang.adapter.offline_queue import OfflineQueue
from echo_sglang.adapter.paced_intake import AT_ONCE, AT_ONCE_OF_RANKS, OfflineLane
from echo_sglang.adapter.ranks import Ranks
from echo_sglang.domain.tag import CUSTOM_PARAMS_KEY
from echo_sglang.policy.offline_pool import PoolSettings
from tests.contract.test_offline_queue import OFFLINE, tokenized

FLOOD = 300


def offline(rid: str, **fields: Any) -> TokenizedGenerateReqInput:
    recv_req = tokenized(rid, [1, 2, 3], **fields)
    recv_req.sampling_params.custom_params = {CUSTOM_PARAMS_KEY: OFFLINE.to_custom_params()}
    return recv_req


def flood(number: int = FLOOD) -> list[TokenizedGenerateReqInput]:
    return [offline(f"off-{i}") for i in range(number)]


class Intake:
    """The part of a scheduler that requests meet first. taken: ids in the order in which SGLang
    was given them, each of which takes `cost_s` on the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, cost_s: float, ranks: Any) -> None:
        self.now_s = 10.0
        self.taken: list[str] = []
        self.answered: list[tuple[str, Any]] = []
        self.counted: list[str] = []
        self.scheduler: Any = OfflineReturn.__new__(OfflineReturn)
        self.scheduler.offline_lane = OfflineLane()
        self.scheduler.offline_queue = OfflineQueue(PoolSettings(), lambda recv: None)
        self.scheduler.ranks = ranks
        self.scheduler.max_req_input_len = 1_000
        self.scheduler.echo_clock = lambda: self.now_s
        self.scheduler._count = lambda name, by: self.counted.extend([name] * by)
        self.scheduler.send_abort_output = lambda abort, source: self.answered.append(
            (source.rid, abort.finished_reason)
        )

        def take(_: Any, recv_reqs: list[Any]) -> None:
            self.taken += [recv_req.rid for recv_req in recv_reqs]
            self.now_s += cost_s * len(recv_reqs)

        monkeypatch.setattr(Scheduler, "process_input_requests", take)
        monkeypatch.setattr(Scheduler, "abort_request", lambda *_: None)
        monkeypatch.setattr(Scheduler, "is_fully_idle", lambda *_: True)

    def iteration(self, *received: Any, seconds: float = 0.0) -> list[str]:
        """What an iteration takes in that receives so much `seconds` after the last one."""
        self.now_s += seconds
        before = len(self.taken)
        self.scheduler.process_input_requests(list(received))
        return self.taken[before:]


@pytest.fixture
def intake(monkeypatch: pytest.MonkeyPatch) -> Intake:
    """One rank, a millisecond a request."""
    return Intake(monkeypatch, cost_s=1e-3, ranks=Ranks(None))


def test_an_online_request_passes_the_flood_that_came_before_it(intake: Intake) -> None:
    first = intake.iteration(*flood(), tokenized("on", [1, 2]))
    assert first == ["on", *(f"off-{i}" for i in range(AT_ONCE))]
    assert intake.iteration(tokenized("on-2", [1, 2]))[0] == "on-2"


def test_every_request_is_taken_in_once_and_in_order(intake: Intake) -> None:
    intake.iteration(*flood())
    while intake.scheduler.offline_lane:
        assert intake.iteration()
    assert intake.taken == [f"off-{i}" for i in range(FLOOD)]
    assert intake.iteration() == []


def test_a_longer_iteration_takes_in_more(intake: Intake) -> None:
    """A twentieth of 0.8 s is enough for 40 requests, of whole bunches for 48."""
    intake.iteration(*flood())
    assert len(intake.iteration(seconds=0.8)) == 48
    assert len(intake.iteration()) == AT_ONCE


def test_no_pause_is_long_enough_to_take_in_everything_at_once(intake: Intake) -> None:
    intake.iteration()
    assert len(intake.iteration(*flood(), seconds=3600.0)) == 64


def test_while_time_stands_still_all_are_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(Intake(monkeypatch, cost_s=0.0, ranks=Ranks(None)).iteration(*flood())) == FLOOD


def test_ranks_take_in_alike_whatever_their_clocks_say(monkeypatch: pytest.MonkeyPatch) -> None:
    several = SimpleNamespace(alone=False)
    for cost_s in (0.0, 1.0):
        rank = Intake(monkeypatch, cost_s=cost_s, ranks=several)
        assert len(rank.iteration(*flood())) == AT_ONCE_OF_RANKS
        assert len(rank.iteration(seconds=5.0)) == AT_ONCE_OF_RANKS
        assert len(rank.iteration()) == FLOOD - 2 * AT_ONCE_OF_RANKS


def test_what_must_be_prepared_does_not_wait_in_the_lane(intake: Intake) -> None:
    prepared = offline("json")
    prepared.sampling_params.json_schema = "{}"
    assert intake.iteration(*flood(), prepared)[0] == "json"


def test_an_abort_finds_a_request_in_the_lane(intake: Intake) -> None:
    intake.iteration(*flood(40))
    intake.scheduler.abort_request(AbortReq(rid="off-20", finished_reason={"type": "abort"}))
    assert intake.answered == [("off-20", {"type": "abort"})]
    assert intake.counted == ["offline_aborted"]
    while intake.scheduler.offline_lane:
        intake.iteration()
    assert intake.taken == [f"off-{i}" for i in range(40) if i != 20]


def test_an_abort_of_all_empties_the_lane(intake: Intake) -> None:
    intake.iteration(*flood(40))
    intake.scheduler.abort_request(AbortReq(rid="", abort_all=True))
    assert [rid for rid, _ in intake.answered] == [f"off-{i}" for i in range(AT_ONCE, 40)]
    assert intake.iteration() == []


def test_a_second_request_of_the_same_id_is_not_lost(intake: Intake) -> None:
    """The API process refuses it; should one come all the same, it goes the way of all others."""
    intake.iteration(*flood(40))
    assert intake.iteration(offline("off-30"))[0] == "off-30"
    while intake.scheduler.offline_lane:
        intake.iteration()
    assert intake.taken.count("off-30") == 2


def test_a_draining_server_gives_the_lane_back(intake: Intake) -> None:
    intake.iteration(*flood(40))
    intake.scheduler.give_offline_back()
    assert [rid for rid, _ in intake.answered] == [f"off-{i}" for i in range(AT_ONCE, 40)]
    reasons = {reason["status_code"] for _, reason in intake.answered}
    assert reasons == {HTTPStatus.SERVICE_UNAVAILABLE}


def test_a_server_is_not_idle_while_the_lane_is_not_empty(intake: Intake) -> None:
    assert intake.scheduler.is_fully_idle()
    intake.iteration(*flood(AT_ONCE + 1))
    assert not intake.scheduler.is_fully_idle()
    intake.iteration()
    assert intake.scheduler.is_fully_idle()
