"""echo-sglang plan with the real emulator: interrupted, killed, and still finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TIMEOUT_S = 600.0
RUNS = 3
"""One window: online alone, and beside offline work with two shares of the SLO."""


def command(folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "echo_sglang.cli", "plan", "--online", "poisson:1"),
        *("--offline", "documents:40x4", "--window-s", "8", "--replicas", "1"),
        *("--margins", "0.5", "--batch-lines", "1000", "--kv-tokens", "100000"),
        *("--jobs", "1", "--results", str(folder), "--json"),
    ]


def kept(folder: Path) -> dict[str, int]:
    """Finished runs and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("runs/*.json")}


def _hear_interrupts() -> None:
    """Who starts the tests in the background may have told them to ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stopped_after(folder: Path, runs: int, how: signal.Signals) -> subprocess.Popen[str]:
    """Start a plan in a session of its own; after `runs` runs stop it, with its children where a
    terminal would interrupt them too."""
    process = subprocess.Popen(
        command(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_hear_interrupts,
    )
    give_up_s = time.monotonic() + TIMEOUT_S
    try:
        while len(kept(folder)) < runs:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < give_up_s, f"no {runs} runs in {TIMEOUT_S} s"
            time.sleep(0.02)
    finally:
        (os.killpg if how is signal.SIGINT else os.kill)(process.pid, how)
    return process


def wait_until_all_ended(session: int) -> None:
    """A plan's runs end soon after it, however it ended."""
    give_up_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < give_up_s, f"session {session} still has processes"
        time.sleep(0.1)


def test_an_interrupted_and_a_killed_plan_go_on_where_they_stopped(tmp_path: Path) -> None:
    interrupted = stopped_after(tmp_path, 1, signal.SIGINT)
    _, errors = interrupted.communicate(timeout=TIMEOUT_S)
    assert interrupted.returncode == 130, errors
    assert "the same command goes on from there" in errors
    wait_until_all_ended(interrupted.pid)
    first = kept(tmp_path)
    assert 1 <= len(first) < RUNS

    killed = stopped_after(tmp_path, 2, signal.SIGKILL)
    killed.communicate(timeout=TIMEOUT_S)
    assert killed.returncode == -signal.SIGKILL
    wait_until_all_ended(killed.pid)
    second = kept(tmp_path)
    assert 2 <= len(second) < RUNS
    assert first.items() <= second.items()

    done = subprocess.run(
        command(tmp_path), capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    )
    last = kept(tmp_path)
    assert len(last) == RUNS and second.items() <= last.items()
    answer: dict[str, Any] = json.loads(done.stdout)
    (window,) = answer["windows"]
    assert window["online_requests"] > 0 and window["beside"]["attained"] is not None
    assert answer["hours"][0]["harvested_tokens_per_s"] > 0
    assert answer["batch_s"] > 0 and len(answer["trade_off"]) == 2
    assert json.loads((tmp_path / "plan.json").read_text()) == answer
    assert "offline tokens per hour" in (tmp_path / "plan.txt").read_text()
    assert (tmp_path / "trade_off.png").stat().st_size > 5000
