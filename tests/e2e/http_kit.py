"""What the co-scheduling tests over HTTP share: bodies, counting, waiting for a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.e2e.live_server import LiveServer
from tests.e2e.script_kit import OFFLINE, ONLINE, prompt

__all__ = ["OFFLINE", "ONLINE", "generate", "prompt", "status", "until", "until_idle"]

MOST_POLLS = 20_000


def generate(
    tokens: list[int], max_new_tokens: int, tier: dict[str, str], **fields: Any
) -> dict[str, Any]:
    """A body for /generate that produces exactly `max_new_tokens`, greedily."""
    params = {"max_new_tokens": max_new_tokens, "ignore_eos": True, "temperature": 0}
    return {"input_ids": tokens, "sampling_params": params, **tier, **fields}


def status(server: LiveServer) -> dict[str, Any]:
    """GET /echo/status; the scheduler answers between two iterations."""
    response = server.get("/echo/status")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def until(server: LiveServer, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
    """Ask for the status until it is as wanted; AssertionError with the last one if never."""
    seen: dict[str, Any] = {}
    for _ in range(MOST_POLLS):
        seen = status(server)
        if holds(seen):
            return seen
    raise AssertionError(f"{what} never came: {seen['requests']}; {server.log_tail()}")


def until_idle(server: LiveServer) -> dict[str, Any]:
    """Wait until nothing runs or waits and no KV is locked."""
    return until(
        server,
        lambda s: not any(s["requests"].values()) and s["memory_tokens"]["locked"] == 0,
        "idle with nothing locked",
    )
