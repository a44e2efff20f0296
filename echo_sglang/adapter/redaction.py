"""Keeps keys and passwords out of what info endpoints show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from echo_sglang.adapter.http_edge import EdgeHook

REDACTED = "<redacted>"
_SECRET_NAME = re.compile(r"(^|_)(api_?key|password|secret)$", re.IGNORECASE)
_SECRET_FLAG = re.compile(r"(--[a-z-]*(?:api-key|password|secret))(=|\s+)(\S+)")


def redact(value: Any, name: str = "") -> Any:
    """A copy of plain JSON values without secrets, whether named so or in a command line."""
    if isinstance(value, Mapping):
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, name) for item in value]
    if isinstance(value, str) and _SECRET_NAME.search(name):
        return REDACTED
    if isinstance(value, str) and name == "launch_command":
        return _SECRET_FLAG.sub(rf"\1\2{REDACTED}", value)
    return value


def redact_server_info(info: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
    """After `build_server_info`: the copy that `/server_info` and gRPC show."""
    return {key: redact(value, key) for key, value in info.items()}


HOOKS = (EdgeHook("sglang.srt.utils.common.build_server_info", redact_server_info, HookType.AFTER),)
