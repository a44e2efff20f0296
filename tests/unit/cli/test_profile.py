"""The profile command drives an idle server that traces, and refuses any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from echo_sglang.cli.main import app
from tests.unit.cli.fake_server import LIMITS, FakeServer, serving


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer()) as fake:
        yield fake


def profile(server: FakeServer, *options: str):
    return CliRunner().invoke(app, ["profile", server.url, "--seconds", "0", *options])


@pytest.mark.slow
def test_it_plays_every_corner_and_says_how_many_iterations_were_recorded(
    server: FakeServer,
) -> None:
    result = profile(server, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["scenes"] > 10
    assert (found["rows"], found["chunk_tokens"]) == (LIMITS["rows"], LIMITS["chunk_tokens"])
    assert found["iterations"] == len(server.bodies)
    assert found["limits"] == LIMITS


@pytest.mark.slow
def test_its_requests_are_online_without_hurry_and_in_the_vocabulary(server: FakeServer) -> None:
    assert profile(server).exit_code == 0
    assert {"service_tier"}.isdisjoint(key for body in server.bodies for key in body)
    assert {body["echo"]["tpot_ms"] for body in server.bodies} == {3_600_000}
    ids = [token for body in server.bodies for token in body["input_ids"]]
    assert min(ids) >= 100 and max(ids) < LIMITS["vocabulary"]
    lengths = [len(b["input_ids"]) + b["sampling_params"]["max_new_tokens"] for b in server.bodies]
    assert max(lengths) <= LIMITS["context_tokens"]


@pytest.mark.slow
def test_prompts_share_one_stem(server: FakeServer) -> None:
    assert profile(server).exit_code == 0
    longest = max((body["input_ids"] for body in server.bodies), key=len)
    sharing = [b for b in server.bodies if b["input_ids"][:50] == longest[:50]]
    assert len(sharing) > 10


@pytest.mark.slow
def test_rows_and_chunks_that_are_too_slow_are_left_out_and_told_of(server: FakeServer) -> None:
    def takes_s(body: dict[str, Any]) -> float:
        return 0.05 * min(len(body["input_ids"]), 64) if len(server.bodies) <= 4 else 0.0

    server.takes_s = takes_s
    server.status["limits"]["chunk_tokens"] = 400
    result = profile(server)
    assert result.exit_code == 0, result.output
    assert "More chunk tokens than" in result.stdout
    assert "allows 400" in result.stdout and "--chunked-prefill-size" in result.stdout
    assert max(len(body["input_ids"]) for body in server.bodies[:3]) <= 64


def test_a_busy_server_is_refused(server: FakeServer) -> None:
    server.status["requests"]["offline_pooled"] = 3
    result = profile(server)
    assert result.exit_code == 2
    assert "busy (3 offline pooled)" in result.stderr
    assert server.bodies == []


def test_a_server_that_becomes_busy_by_others_ends_the_profile(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echo_sglang.cli.driver.IDLE_POLL_S", 0.0)
    server.stays_busy = True
    result = profile(server)
    assert result.exit_code == 2
    assert "something else uses it" in result.stderr


def test_a_server_without_a_trace_is_told_how_to_start(server: FakeServer) -> None:
    server.status["step_trace"] = None
    result = profile(server)
    assert result.exit_code == 2
    assert "--echo-trace PATH" in result.stderr


def test_a_trace_that_is_switched_off_is_told(server: FakeServer) -> None:
    server.status["step_trace"]["error"] = "OSError: disk full"
    result = profile(server)
    assert result.exit_code == 2
    assert "disk full" in result.stderr


def test_a_request_that_the_server_refuses_ends_the_profile(server: FakeServer) -> None:
    server.refuse_after = 20
    result = profile(server)
    assert result.exit_code == 2
    assert "answered 503" in result.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "not a url", "http://", "ftp://x"])
def test_an_address_where_no_server_is_is_refused(url: str) -> None:
    result = CliRunner().invoke(app, ["profile", url, "--json"])
    assert result.exit_code == 2
    assert "is the server up" in result.stderr


def test_something_else_than_an_echo_server_is_refused(server: FakeServer) -> None:
    server.status = []  # type: ignore[assignment]
    result = profile(server)
    assert result.exit_code == 2
    assert "without --echo-off" in result.stderr


def test_a_negative_time_budget_is_a_usage_error(server: FakeServer) -> None:
    assert CliRunner().invoke(app, ["profile", server.url, "--seconds", "-1"]).exit_code == 2
