"""A short key of a line's prompt: lines that sort next to each other share prefixes.

The prompt's text is cut at 256, 512, 1,024, ... bytes; the key holds a checksum of what comes
before each cut. Sorted, lines that share the first 256 bytes are together, among those the ones
that share 512, and so on: the order in which a depth-first walk of the prefix tree meets them,
from 44 bytes a line. It need not be exact: the scheduler compares tokens itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from zlib import crc32

import orjson

_CUTS = tuple(256 << level for level in range(10))
_KEY_PARTS = 1 + len(_CUTS)
_KEY = struct.Struct(f">{_KEY_PARTS}I")
_BYTES = 4
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("tools", "messages"),
    "/v1/completions": ("prompt",),
    "/v1/responses": ("tools", "instructions", "input"),
}
"""What the prompt is made of, in the order in which templates render it."""

GROUP_BYTES = 4 * _BYTES
"""Lines whose keys begin with the same so many bytes share at least 1,024 bytes of prompt."""


def prompt_text(endpoint: str, body: Mapping[str, Any]) -> bytes:
    """The prompt of one request body as JSON. Embeddings share nothing: theirs is empty."""
    fields = _FIELDS.get(endpoint, ())
    return b"".join([orjson.dumps(body[field]) for field in fields if field in body])


def prefix_key(endpoint: str, body: Mapping[str, Any]) -> bytes:
    """The key of one request body."""
    return PromptKeys().key(endpoint, body.get("model"), prompt_text(endpoint, body))


class PromptKeys:
    """Makes the keys of a batch's lines.

    new_bytes: of all prompts so far; what one shares with an earlier one, to the last cut that
    both reach, counts once.
    """

    __slots__ = ("_seen", "new_bytes")

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.new_bytes = 0

    def key(self, endpoint: str, model: object, text: bytes) -> bytes:
        """The key of a prompt that `prompt_text` gave."""
        key = [_beginning(endpoint, str(model))]
        seen = self._seen
        start = value = 0
        size = len(text)
        for cut in _CUTS:
            if start >= size:
                break
            value = crc32(text[start:cut], value)
            if value not in seen:
                seen.add(value)
                self.new_bytes += min(cut, size) - start
            key.append(value)
            start = cut
        self.new_bytes += max(size - start, 0)
        key.extend([value] * (_KEY_PARTS - len(key)))
        return _KEY.pack(*key)


@lru_cache(maxsize=64)
def _beginning(endpoint: str, model: str) -> int:
    return crc32(model.encode("utf-8", "surrogatepass"), crc32(endpoint.encode()))


def group_of(key: bytes) -> bytes:
    """The part of a key that lines worth running together have in common."""
    return key[:GROUP_BYTES]


def end_of_group(group: bytes) -> bytes | None:
    """The least key behind all keys of the group, None if there is none."""
    number = int.from_bytes(group, "big") + 1
    if number >> (8 * len(group)):
        return None
    return number.to_bytes(len(group), "big")
