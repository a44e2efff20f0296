"""What the supervisor reads of the command line, and what it answers while no engine does."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from echo_sglang.errors import ConfigError
from echo_sglang.supervisor.channel import Inherited, inherited_from, message, parse
from echo_sglang.supervisor.door import Door, Unavailable
from echo_sglang.supervisor.flags import ServeFlags, listen, parse_serve_flags


def test_host_port_and_tls_are_read_and_everything_else_left_alone() -> None:
    arguments = ["--model-path", "m", "--host", "::1", "--port=7", "--ssl-certfile", "c"]
    assert parse_serve_flags(arguments) == ServeFlags("::1", 7, {"ssl_certfile": "c"})
    assert parse_serve_flags([]) == ServeFlags("127.0.0.1", 30000)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--enable-http2"], "--enable-http2"),
        (["--tokenizer-worker-num", "2"], "--tokenizer-worker-num"),
        (["--port", "x"], "--port"),
        (["--port", "70000"], "70000"),
    ],
)
def test_what_cannot_be_supervised_is_refused_by_name(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_serve_flags(arguments)


def test_a_taken_port_is_refused_with_what_to_do() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="another supervisor"):
            listen(ServeFlags("127.0.0.1", other.getsockname()[1]))


def test_an_unknown_host_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--host not\.an\.address"):
        listen(ServeFlags("not.an.address.invalid", 1))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with listen(ServeFlags("127.0.0.1", port)) as found:
        yield found


def test_a_closed_door_answers_503_in_openai_s_shape_and_can_open_again(
    listener: socket.socket,
) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"
    door = Door(listener, lambda: Unavailable("starting", 7), {})
    for _ in range(2):
        door.open()
        door.open()
        with httpx.Client(trust_env=False, timeout=20) as client:
            response = client.post(url, json={"messages": ["x" * 100_000]})
        door.close()
        door.close()
        assert response.status_code == 503
        assert response.headers["retry-after"] == "7"
        error = response.json()["error"]
        assert (error["message"], error["code"]) == ("starting", "engine_unavailable")
        assert set(error) == {"message", "type", "param", "code"}


def test_a_connection_made_while_nobody_accepts_is_answered_when_somebody_does(
    listener: socket.socket,
) -> None:
    with socket.create_connection(listener.getsockname(), timeout=20) as waiting:
        waiting.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        door = Door(listener, lambda: Unavailable("starting", 1), {})
        door.open()
        answer = waiting.recv(1000)
        door.close()
    assert answer.startswith(b"HTTP/1.1 503")


def accepted_by(door: Door, listener: socket.socket) -> socket.socket:
    """A connection that the open door has accepted and that nothing was sent on."""
    quiet = socket.create_connection(listener.getsockname(), timeout=20)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with httpx.Client(trust_env=False, timeout=20) as later:
        assert later.get(url).status_code == 503
    return quiet


def test_a_request_on_its_way_when_the_door_closes_is_answered(listener: socket.socket) -> None:
    door = Door(listener, lambda: Unavailable("starting", 1), {})
    door.open()
    with accepted_by(door, listener) as waiting:
        closing = threading.Thread(target=door.close)
        closing.start()
        waiting.settimeout(0.5)
        with pytest.raises(TimeoutError):  # nobody hangs up on it
            waiting.recv(1)
        waiting.settimeout(20)
        waiting.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = waiting.recv(1000)
        closing.join()
    assert answer.startswith(b"HTTP/1.1 503")


def test_a_client_that_sends_nothing_does_not_keep_the_door_open(listener: socket.socket) -> None:
    door = Door(listener, lambda: Unavailable("starting", 1), {})
    door.open()
    with accepted_by(door, listener) as silent:
        door.close()
        assert silent.recv(1) == b""


def test_what_an_engine_inherits_comes_back_from_the_environment() -> None:
    inherited = Inherited(5, 6, 7)
    assert inherited_from(inherited.to_environment()) == inherited
    assert inherited_from({}) is None


def test_a_torn_line_of_the_channel_says_nothing() -> None:
    assert parse(message("beat", ready=True)) == {"says": "beat", "ready": True}
    assert parse(b'{"says": "be') == {}
    assert parse(json.dumps([1]).encode()) == {}
