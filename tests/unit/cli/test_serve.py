"""echo-sglang serve: what it refuses before it starts anything."""

from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner

from echo_sglang.cli.main import app


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model-path", "m", "--enable-http2"], "--enable-http2"),
        (["--model-path", "m", "--port", "0"], "--port 0: allowed is 1 to 65535"),
    ],
)
def test_what_cannot_be_supervised_ends_with_exit_code_2(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_taken_port_ends_with_exit_code_2() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", "--model-path", "m", "--port", port])
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_the_help_names_the_supervisors_flags_and_the_launcher() -> None:
    text = CliRunner().invoke(app, ["serve", "--help"]).stdout
    for said in ("--echo-drain-s", "--echo-hang-s", "--echo-most-failures", "launch_server"):
        assert said in text
