"""HTTP routes of Echo, added to SGLang's own server: GET /echo/status, POST /echo/dump."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from echo_sglang.adapter.http_guard import HttpGuard
from echo_sglang.config import EchoConfig

DUMP_KEY = "echo_dump"
"""The key of SGLang's set_internal_state that asks the scheduler to dump its decisions."""


UPLOADS = "/v1/files"
"""Where bodies are streamed to a file and bounded there."""


def install_routes(config: EchoConfig) -> None:
    """Add the routes and the guard to SGLang's application; call before it serves."""
    from sglang.srt.entrypoints import http_server
    from sglang.srt.managers.io_struct import SetInternalStateReq
    from sglang.srt.utils.auth import AuthLevel, auth_level

    async def status() -> list[dict[str, Any]] | dict[str, Any]:
        states = await _tokenizer_manager(http_server).get_internal_state()
        found = [state["echo"] for state in states]
        return found[0] if len(found) == 1 else found

    @auth_level(AuthLevel.ADMIN_OPTIONAL)
    async def dump(response: Response) -> dict[str, Any]:
        request = SetInternalStateReq(server_args={DUMP_KEY: 1})
        written = all(await _tokenizer_manager(http_server).set_internal_state(request))
        if not written:
            response.status_code = 409
            return {"written": False, "reason": "start the server with --echo-decision-log PATH"}
        return {"written": True}

    http_server.app.add_api_route("/echo/status", status, methods=["GET"])
    http_server.app.add_api_route("/echo/dump", dump, methods=["POST"])
    http_server.app.add_middleware(HttpGuard, max_body_mb=config.max_body_mb, unlimited=(UPLOADS,))


def _tokenizer_manager(http_server: Any) -> Any:
    return http_server._global_state.tokenizer_manager
