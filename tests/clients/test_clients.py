"""Client libraries, each in an environment of its own, against one server.

Run by `make test-clients`. ECHO_TEST_CLIENTS names those to run, "all" for each; without it
they are skipped, since their environments are built from a package index first.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.clients.environment import CLIENTS, ensure_client
from tests.e2e.conftest import ServerFactory, model_path, start_server
from tests.e2e.live_server import LiveServer
from tests.e2e.test_emulated_live import DEVICE

__all__ = ["model_path", "start_server"]

pytestmark = pytest.mark.server

TIMEOUT_S = 180.0
NAMED = [name for name in os.environ.get("ECHO_TEST_CLIENTS", "").split(",") if name]
WANTED = list(CLIENTS) if NAMED == ["all"] else NAMED
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def server(start_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> LiveServer:
    data_dir = tmp_path_factory.mktemp("data")
    return start_server(flags=["--echo-emulate", DEVICE, "--echo-data-dir", str(data_dir)])


def needs(client: str) -> pytest.MarkDecorator:
    reason = f"ECHO_TEST_CLIENTS does not name {client}"
    return pytest.mark.skipif(client not in WANTED, reason=reason)


def test_the_clients_that_are_wanted_exist() -> None:
    assert set(WANTED) <= set(CLIENTS), f"there are {', '.join(CLIENTS)}; or say all"


@pytest.mark.parametrize("client", [pytest.param(name, marks=needs(name)) for name in CLIENTS])
def test_a_client_does_its_work(client: str, server: LiveServer, tmp_path: Path) -> None:
    python = ensure_client(client)
    script = HERE / f"with_{client.replace('-', '_')}.py"
    done = subprocess.run(
        [python, script, f"http://127.0.0.1:{server.port}"],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
