"""What docs/security.md promises, on a real server that has an --api-key and no admin key."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import ServerFactory
from tests.e2e.live_server import LiveServer

pytestmark = pytest.mark.server

KEY = "user-key-5f2c"
FLAGS = [
    *("--echo-emulate", "A100-80G:Llama-3.1-8B"),
    *("--api-key", KEY),
    *("--echo-max-body-mb", "0.5"),
]
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def server(start_server: ServerFactory) -> LiveServer:
    return start_server(flags=FLAGS)


def ask(server: LiveServer, method: str, path: str, key: str | None = KEY, **more: Any) -> Any:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    headers |= more.pop("headers", {})
    url = f"http://127.0.0.1:{server.port}{path}"
    with httpx.Client(trust_env=False, timeout=60) as client:
        return client.request(method, url, headers=headers, **more)


def assert_serves(server: LiveServer) -> None:
    assert ask(server, "POST", CHAT, json={**BODY, "max_tokens": 2}).status_code == 200


@pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
def test_info_endpoints_show_no_keys(server: LiveServer, path: str) -> None:
    response = ask(server, "GET", path)
    assert response.status_code == 200
    assert KEY not in response.text
    info = response.json()
    assert info["api_key"] == info["admin_api_key"] == "<redacted>"
    assert info["internal_states"][0]["api_key"] == "<redacted>"
    assert "--api-key <redacted>" in info["launch_command"]


@pytest.mark.parametrize("path", ["/flush_cache", "/echo/dump", "/set_internal_state"])
def test_a_user_key_opens_no_admin_route(server: LiveServer, path: str) -> None:
    assert ask(server, "POST", path, json={"server_args": {}}).status_code == 401
    assert_serves(server)


def test_without_the_key_nothing_but_probes_answers(server: LiveServer) -> None:
    assert ask(server, "POST", CHAT, key=None, json=BODY).status_code == 401
    assert ask(server, "GET", "/echo/status", key=None).status_code == 401
    assert ask(server, "GET", "/health", key=None).status_code == 200


@pytest.mark.parametrize("key", ["wrong", KEY + "x", KEY[:-1]])
def test_a_wrong_key_is_refused(server: LiveServer, key: str) -> None:
    assert ask(server, "POST", CHAT, key=key, json=BODY).status_code == 401


def test_a_key_beyond_ascii_is_refused_not_a_server_error(server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\xe9y\r\n"
            b"Connection: close\r\n\r\n"
        )
        answer = raw.recv(4000)
    assert answer.startswith(b"HTTP/1.1 401"), answer


def test_a_body_beyond_the_limit_is_a_413_with_and_without_its_length(server: LiveServer) -> None:
    large = b'{"pad": "' + b"x" * 600_000 + b'"}'
    headers = {"Content-Type": "application/json"}

    def parts() -> Any:
        for start in range(0, len(large), 50_000):
            yield large[start : start + 50_000]

    for content in (large, parts()):
        response = ask(server, "POST", CHAT, content=content, headers=headers)
        assert response.status_code == 413, response.text
        assert response.json()["error"]["code"] == "body_too_large"
    assert_serves(server)


def test_too_many_headers_are_a_431(server: LiveServer) -> None:
    many = {f"X-{index}": "y" for index in range(200)}
    assert ask(server, "GET", "/v1/models", headers=many).status_code == 431
    assert_serves(server)


@pytest.mark.parametrize("path", [CHAT, "/generate"])
def test_json_nested_100000_deep_is_a_400(server: LiveServer, path: str) -> None:
    deep = '{"model": "m", "messages": ' + "[" * 100_000 + "]" * 100_000 + "}"
    response = ask(server, "POST", path, content=deep, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text[:200]
    assert_serves(server)


@pytest.mark.parametrize("field", ["image_data", "video_data", "audio_data"])
@pytest.mark.parametrize(
    "source", ["http://127.0.0.1:9/a.png", "file:///etc/hostname", "/etc/hostname"]
)
def test_media_that_only_is_named_is_refused(server: LiveServer, field: str, source: str) -> None:
    body = {"text": "Hi", field: source, "sampling_params": {"max_new_tokens": 2}}
    response = ask(server, "POST", "/generate", json=body)
    assert response.status_code == 400
    assert field in response.text and "data: URL" in response.text
    assert_serves(server)


def test_a_grammar_bomb_is_a_400_that_names_its_field(server: LiveServer) -> None:
    bomb = "((a{1,1000}){1,1000}){1,1000}"
    for path, body, named in (
        (CHAT, {**BODY, "regex": bomb}, "regex"),
        (CHAT, {**BODY, "regex": bomb, "stream": True}, "regex"),
        ("/v1/completions", {"model": "m", "prompt": "a", "regex": "a\0"}, "regex"),
        ("/v1/completions", {"model": "m", "prompt": "a", "json_schema": '{"$ref":"#"}'}, "json_s"),
        ("/generate", {"text": "a", "sampling_params": {"regex": bomb}}, "sampling_params.regex"),
    ):
        response = ask(server, "POST", path, json=body)
        assert response.status_code == 400, response.text
        assert named in response.text
    assert_serves(server)
