"""Real servers for the end-to-end tests.

ECHO_TEST_MODEL           folder of a Hugging Face model; without it these tests are skipped
ECHO_TEST_SERVER_MODULE   what `python -m` starts, if not echo_sglang.launch_server
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.live_server import ECHO_MODULE, LiveServer

ServerFactory = Callable[..., LiveServer]

SMALL_SERVER_FLAGS = (
    *("--max-total-tokens", "4096"),
    *("--context-length", "2048"),
    *("--chunked-prefill-size", "256"),
    "--enable-mixed-chunk",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for the model starts a server, and says so."""
    for item in items:
        if "model_path" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def model_path() -> str:
    path = os.environ.get("ECHO_TEST_MODEL")
    if not path:
        pytest.skip("ECHO_TEST_MODEL names no model folder")
    return path


@pytest.fixture(scope="module")
def start_server(
    model_path: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ServerFactory]:
    """Start servers that live until the end of the module.

    start_server(module=..., flags=..., environment=...): see LiveServer; each has a default.
    When a test of the module has failed, the tail of every log is printed.
    """
    servers: list[LiveServer] = []
    failed_before = request.session.testsfailed

    def start(**options: Any) -> LiveServer:
        options.setdefault("module", os.environ.get("ECHO_TEST_SERVER_MODULE", ECHO_MODULE))
        options.setdefault("flags", SMALL_SERVER_FLAGS)
        log_path = tmp_path_factory.mktemp("server") / "server.log"
        server = LiveServer(model_path=model_path, log_path=log_path, **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()
        if request.session.testsfailed > failed_before:
            print(f"\n{server.log_path} ends with\n{server.log_tail()}")


@pytest.fixture(scope="module")
def server(start_server: ServerFactory) -> LiveServer:
    """One small server for the module, with the default module, flags and environment."""
    return start_server()
