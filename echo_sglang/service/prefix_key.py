"""A short key of a line's prompt: lines that sort next to each other share prefixes.

The prompt's text is cut at 256, 512, 1,024, ... bytes; the key holds a checksum of what comes
before each cut. Sorted, lines that share the first 256 bytes are together, among those the ones
that share 512, and so on: the order in which a depth-first walk of the prefix tree meets them,
from 44 bytes a line. It need not be exact: the scheduler compares tokens itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import orjson

_CUTS = tuple(256 << level for level in range(10))
_BYTES = 4
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("tools", "messages"),
    "/v1/completions": ("prompt",),
    "/v1/responses": ("tools", "instructions", "input"),
}
"""What the prompt is made of, in the order in which templates render it."""

GROUP_BYTES = 4 * _BYTES
"""Lines whose keys begin with the same so many bytes share at least 1,024 bytes of prompt."""


def prefix_key(endpoint: str, body: Mapping[str, Any]) -> bytes:
    """The key of one request body. Embeddings share nothing: only the model counts."""
    value = crc32(endpoint.encode())
    key = [crc32(str(body.get("model")).encode(), value)]
    text = b"".join(
        orjson.dumps(body[field]) for field in _FIELDS.get(endpoint, ()) if field in body
    )
    start = 0
    value = 0
    for cut in _CUTS:
        if start < len(text):
            value = crc32(text[start:cut], value)
            start = cut
        key.append(value)
    return b"".join(part.to_bytes(_BYTES, "big") for part in key)


def group_of(key: bytes) -> bytes:
    """The part of a key that lines worth running together have in common."""
    return key[:GROUP_BYTES]


def end_of_group(group: bytes) -> bytes | None:
    """The least key behind all keys of the group, None if there is none."""
    number = int.from_bytes(group, "big") + 1
    if number >> (8 * len(group)):
        return None
    return number.to_bytes(len(group), "big")
