"""The guard, the drain's listeners, media, redaction and admin keys, each by itself."""

from __future__ import annotations

import asyncio
import inspect
import json
import pkgutil
from collections.abc import MutableMapping
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.managers.io_struct import GenerateReqInput

from echo_sglang.adapter import admin, drain, media, redaction
from echo_sglang.adapter.admin import (
    close_admin_routes,
    decide_without_raising,
    is_loopback,
)
from echo_sglang.adapter.drain import Drain
from echo_sglang.adapter.http_edge import EdgeHook
from echo_sglang.adapter.http_guard import HttpGuard
from echo_sglang.adapter.media import refuse_named_media
from echo_sglang.adapter.redaction import redact

LEADING_PARAMETERS = {
    "sigterm_handler": ["self", "signum", "frame"],
    "generate_request": ["self", "obj", "request"],
    "build_server_info": ["server_args", "scheduler_info"],
    "decide_request_auth": [
        *("method", "path", "authorization_header", "api_key", "admin_api_key", "auth_level"),
    ],
}


@pytest.mark.parametrize(
    "hook",
    [*admin.HOOKS, *drain.HOOKS, *media.HOOKS, *redaction.HOOKS],
    ids=lambda hook: hook.target,
)
def test_a_hooked_function_takes_what_its_hook_expects(hook: EdgeHook) -> None:
    parameters = list(inspect.signature(pkgutil.resolve_name(hook.target)).parameters)
    assert parameters == LEADING_PARAMETERS[hook.target.rsplit(".", 1)[1]]


async def reading_app(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def call(
    method: str = "POST",
    path: str = "/generate",
    headers: list[tuple[bytes, bytes]] | None = None,
    parts: tuple[bytes, ...] = (b"",),
    app: Any = reading_app,
    **options: Any,
) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and JSON body of one request to a guard of 1,000 bytes."""
    scope = {"type": "http", "method": method, "path": path, "headers": headers or []}
    waiting = [
        {"type": "http.request", "body": part, "more_body": index + 1 < len(parts)}
        for index, part in enumerate(parts)
    ]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return waiting.pop(0)

    async def send(part: MutableMapping[str, Any]) -> None:
        sent.append(part)

    options.setdefault("drain", Drain())
    asyncio.run(HttpGuard(app, max_body_mb=0.001, **options)(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, json.loads(sent[1]["body"])


def test_a_body_at_the_limit_passes_and_one_byte_more_is_a_413() -> None:
    assert call(parts=(b"x" * 600, b"x" * 400))[0] == 200
    status, _, body = call(parts=(b"x" * 600, b"x" * 401))
    assert (status, body["error"]["code"]) == (413, "body_too_large")


def test_a_declared_length_is_refused_before_the_body_is_read() -> None:
    def unread(*_: Any) -> Any:
        raise AssertionError

    length = [(b"content-length", b"1001")]
    assert call(headers=length, app=unread)[0] == 413


def test_a_413_is_not_covered_by_what_the_app_makes_of_a_body_it_cannot_read() -> None:
    async def as_fastapi(scope: Any, receive: Any, send: Any) -> None:
        try:
            await reading_app(scope, receive, send)
        except Exception:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

    status, _, body = call(parts=(b"x" * 600, b"x" * 600, b"rest"), app=as_fastapi)
    assert (status, body["error"]["code"]) == (413, "body_too_large")


def test_uploads_bound_their_own_bodies() -> None:
    parts = (b"x" * 5000,)
    assert call(path="/v1/files", parts=parts, unlimited=("/v1/files",))[0] == 200
    assert call(path="/generate", parts=parts, unlimited=("/v1/files",))[0] == 413


def test_headers_are_bounded_in_number_and_bytes() -> None:
    assert call(headers=[(b"x", b"y")] * 100)[0] == 200
    assert call(headers=[(b"x", b"y")] * 101)[0] == 431
    assert call(headers=[(b"x", b"y" * 40_000)])[0] == 431


def test_a_draining_server_refuses_work_and_probes_and_lets_the_rest_look() -> None:
    draining = Drain()
    draining.active = True
    status, headers, body = call(drain=draining)
    assert (status, headers["retry-after"]) == (503, "10")
    assert body["error"]["code"] == "server_draining"
    assert call("GET", "/health", drain=draining)[0] == 503
    assert call("GET", "/v1/batches/b", drain=draining)[0] == 200


class FakeManager:
    """Of SGLang's tokenizer manager, what a drain uses."""

    def __init__(self, unfinished: int) -> None:
        self.rid_to_state = {str(index): None for index in range(unfinished)}
        self.gracefully_exit = False
        self.asked: list[str] = []

    async def set_internal_state(self, request: Any) -> list[bool]:
        self.asked.append(next(iter(request.server_args)))
        return [True]

    def abort_request(self, *, abort_all: bool) -> None:
        self.asked.append("abort_all" if abort_all else "abort")


def drained(manager: FakeManager, draining: Drain, drain_s: float) -> None:
    async def run() -> None:
        draining.begin(manager, drain_s)
        assert draining._task is not None
        await draining._task

    asyncio.run(run())


def test_a_drain_tells_its_listeners_first_and_outlives_one_that_fails() -> None:
    manager, draining = FakeManager(unfinished=0), Drain()

    async def fails() -> None:
        raise OSError("store is gone")

    async def lets_go() -> None:
        manager.asked.append("let go")

    draining.before_drain(fails)
    draining.before_drain(lets_go)
    drained(manager, draining, drain_s=5.0)
    assert manager.asked == ["let go", drain.DRAIN_KEY]
    assert manager.gracefully_exit


def test_what_is_left_when_the_time_is_over_is_aborted() -> None:
    manager = FakeManager(unfinished=2)
    drained(manager, Drain(), drain_s=0.0)
    assert manager.asked == [drain.DRAIN_KEY, "abort_all"]
    assert manager.gracefully_exit


@pytest.mark.parametrize(
    "source",
    [
        "http://a/b.png",
        "HTTPS://a/b.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "../secret.png",
        ["data:image/png;base64,AA==", "file:///x"],
        [["http://a"]],
        {"url": "http://a"},
        SimpleNamespace(url="/etc/passwd"),
    ],
)
def test_named_media_are_refused_wherever_they_stand(source: Any) -> None:
    with pytest.raises(ValueError, match="image_data"):
        refuse_named_media(SimpleNamespace(image_data=source), domains_allowed=False)


def test_inline_media_pass_and_urls_where_domains_are_allowed() -> None:
    inline = ["data:image/png;base64,AA==", "iVBORw0KGgo=", b"bytes", None]
    refuse_named_media(GenerateReqInput(text="x", image_data=inline), domains_allowed=False)
    refuse_named_media(SimpleNamespace(video_data="https://a/b"), domains_allowed=True)
    with pytest.raises(ValueError, match="audio_data"):
        refuse_named_media(SimpleNamespace(audio_data="note.wav"), domains_allowed=True)


def test_secrets_are_redacted_at_any_depth_and_in_the_command_line() -> None:
    shown = redact(
        {
            "api_key": "a",
            "admin_api_key": None,
            "ssl_keyfile_password": "p",
            "max_total_tokens": 5,
            "internal_states": [{"api_key": "b"}],
            "launch_command": "--model m --api-key a --admin-api-key=b --port 1",
        }
    )
    assert shown == {
        "api_key": "<redacted>",
        "admin_api_key": None,
        "ssl_keyfile_password": "<redacted>",
        "max_total_tokens": 5,
        "internal_states": [{"api_key": "<redacted>"}],
        "launch_command": "--model m --api-key <redacted> --admin-api-key=<redacted> --port 1",
    }


@pytest.mark.parametrize(
    ("host", "api_key", "closes"),
    [
        ("127.0.0.1", None, False),
        ("localhost", None, False),
        ("::1", None, False),
        ("127.0.0.1", "user", True),
        ("0.0.0.0", None, True),
        ("10.1.2.3", "user", True),
        ("my-host", None, True),
    ],
)
def test_admin_routes_close_beyond_loopback_and_beside_user_keys(
    host: str, api_key: str | None, closes: bool
) -> None:
    server_args = SimpleNamespace(host=host, api_key=api_key, admin_api_key=None)
    assert close_admin_routes(server_args) is closes
    assert bool(server_args.admin_api_key) is closes
    assert is_loopback(host) is (host in ("127.0.0.1", "localhost", "::1"))


@pytest.mark.parametrize(
    ("header", "allowed"), [("Bearer key", True), ("Bearer k\xe9y", False), (None, False)]
)
def test_a_key_beyond_ascii_is_a_wrong_key(header: str | None, allowed: bool) -> None:
    from sglang.srt.utils.auth import AuthLevel, decide_request_auth

    decision = decide_without_raising(
        decide_request_auth,
        authorization_header=header,
        method="GET",
        path="/v1/models",
        api_key="key",
        admin_api_key=None,
        auth_level=AuthLevel.NORMAL,
    )
    assert decision.allowed is allowed


def test_an_admin_key_that_was_given_is_kept() -> None:
    server_args = SimpleNamespace(host="0.0.0.0", api_key=None, admin_api_key="mine")
    assert not close_admin_routes(server_args)
    assert server_args.admin_api_key == "mine"
