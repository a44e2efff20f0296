"""A real supervisor process with real, fake-brained engines: port, restarts, drain, orphans."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 60.0

Start = Callable[..., "Running"]


class Running:
    def __init__(self, folder: Path, plan: tuple[str, ...]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        self.log = folder / "log"
        self.statuses: list[int] = []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, str(Path(__file__).with_name("run_supervisor.py"))),
                    *(str(port), str(folder / "starts"), *plan),
                ],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def text(self) -> str:
        return self.log.read_text()

    def until(self, holds: Callable[[], object]) -> None:
        give_up_s = time.monotonic() + TIMEOUT_S
        while not holds():
            assert time.monotonic() < give_up_s, self.text()
            time.sleep(0.02)

    def serves(self) -> bool:
        """Ask once; notes the status. A refused connection is an error once it listened."""
        with httpx.Client(trust_env=False, timeout=20) as client:
            try:
                self.statuses.append(client.get(self.url).status_code)
            except httpx.ConnectError:
                assert not self.statuses, "the port was closed"
                return False
            except (httpx.ReadError, httpx.RemoteProtocolError):
                self.statuses.append(0)
        return self.statuses[-1] == 200

    def engines(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Running] = []

    def run(*plan: str) -> Running:
        started.append(Running(tmp_path, plan))
        return started[-1]

    yield run
    for running in started:
        running.process.kill()
        running.process.wait()


def test_crashes_and_hangs_are_survived_with_the_port_open_and_a_stop_ends_with_zero(
    start: Start,
) -> None:
    running = start("crash", "hang", "serve")
    running.until(running.serves)
    assert set(running.statuses) <= {0, 503, 200} and 503 in running.statuses
    text = running.text()
    assert "exit code 3" in text and "| the model is on fire" in text
    assert "its scheduler was silent for 1 s" in text
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(TIMEOUT_S) == 0
    assert running.text().rstrip().endswith("stopped with exit code 0: drained")


def test_each_engine_learns_whether_the_last_one_died_of_its_requests(start: Start) -> None:
    running = start("orphaned", "failed", "serve")
    running.until(running.serves)
    text = running.text()
    assert "engine 0 blames requests: True" in text  # what was before is not known
    assert "engine 1 blames requests: False" in text  # a process of engine 0 was killed
    assert "engine 2 blames requests: True" in text  # one of engine 1 reported an error
    assert text.count("it was ended from outside") == 1


def test_a_crash_loop_ends_with_its_reason(start: Start) -> None:
    running = start("crash")
    assert running.process.wait(TIMEOUT_S) == 1
    assert "4 failures in a row" in running.text().splitlines()[-1]
    assert running.text().count("| the model is on fire") == 4


def test_an_engine_that_ignores_the_drain_is_killed_after_its_bound(start: Start) -> None:
    running = start("stubborn")
    running.until(running.serves)
    engines = running.engines()
    running.process.terminate()
    assert running.process.wait(TIMEOUT_S) == 1
    assert "did not end within the time a drain may take" in running.text()
    assert not any(engine.is_running() for engine in engines)


def test_a_second_signal_ends_at_once(start: Start) -> None:
    running = start("stubborn")
    running.until(running.serves)
    running.process.terminate()
    running.until(lambda: "draining" in running.text())
    running.process.terminate()
    assert running.process.wait(TIMEOUT_S) == 1
    assert "a second signal cut the drain short" in running.text()
