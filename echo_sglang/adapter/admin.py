"""Admin routes stay closed unless the operator can be told from everybody else.

SGLang opens its admin routes (flush the cache, load weights, profile, ...) to anyone when no key
is set, and to every user when only --api-key is. A random --admin-api-key, known to this
process alone, closes them with SGLang's own check and still lets SGLang use them itself.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from echo_sglang.adapter.http_edge import EdgeHook

logger = logging.getLogger(__name__)

KEY_BYTES = 32


def close_admin_routes(server_args: Any) -> bool:
    """Give `server_args` an unknown admin key if they have none and need one; True if so."""
    if server_args.admin_api_key:
        return False
    if is_loopback(server_args.host) and not server_args.api_key:
        return False
    server_args.admin_api_key = secrets.token_urlsafe(KEY_BYTES)
    logger.warning(
        "Admin routes are closed: no --admin-api-key was given, and the server %s",
        "has an --api-key for users" if server_args.api_key else "listens beyond loopback",
    )
    return True


def is_loopback(host: str) -> bool:
    """True for localhost and addresses that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def decide_without_raising(
    decide: Callable[..., Any], *, authorization_header: str | None, **facts: Any
) -> Any:
    """Around `decide_request_auth`: its constant-time comparison raises for text beyond ASCII,
    which no key is; such a header counts as none."""
    if authorization_header is not None and not authorization_header.isascii():
        authorization_header = None
    return decide(authorization_header=authorization_header, **facts)


HOOKS = (
    EdgeHook("sglang.srt.utils.auth.decide_request_auth", decide_without_raising, HookType.AROUND),
)
