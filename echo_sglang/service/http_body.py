"""Reads JSON bodies of the batch API within strict bounds, and checks their fields."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import Request

from echo_sglang.service.errors import InvalidInputError, TooLargeError
from echo_sglang.service.files import checked_lifetime_s
from echo_sglang.service.model import ENDPOINTS, IdempotencyKey, NewBatch
from echo_sglang.service.windows import window_s

MAX_BODY_BYTES = 64 * 1024
"""16 pairs of metadata with every character escaped fit twice."""

_MAX_KEY = 255
_MAX_PAIRS, _MAX_NAME, _MAX_VALUE = 16, 64, 512
_FIELDS = (
    "input_file_id",
    "endpoint",
    "completion_window",
    "metadata",
    "output_expires_after",
)


async def read_object(request: Request) -> Mapping[str, Any]:
    """The body as a JSON object. Raises TooLargeError, InvalidInputError."""
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY_BYTES:
            raise TooLargeError(
                "body", f"the body has more than {MAX_BODY_BYTES:,} bytes, the most allowed here"
            )
    try:
        body = orjson.loads(bytes(raw))
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(
            "body", f"the body is not JSON in UTF-8: {error}"[:300], "invalid_json"
        ) from None
    if not isinstance(body, dict):
        raise InvalidInputError(
            "body", f"the body must be a JSON object, got {type(body).__name__}", "invalid_json"
        )
    return body


def idempotency_key(request: Request, body: object) -> IdempotencyKey | None:
    """The Idempotency-Key header with the digest of what was asked, None without one.

    Raises InvalidInputError.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= _MAX_KEY or not key.isprintable():
        raise InvalidInputError(
            "Idempotency-Key", f"must have 1 to {_MAX_KEY} printable characters, got {key[:80]!r}"
        )
    text = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    return IdempotencyKey(key=key, body_digest=hashlib.sha256(text).hexdigest())


def new_batch(owner: str, body: Mapping[str, Any]) -> NewBatch:
    """What POST /v1/batches asks for. Raises InvalidInputError."""
    unknown = sorted(set(body) - set(_FIELDS))
    if unknown:
        raise InvalidInputError(
            unknown[0][:64],
            f"unknown field {unknown[0][:64]!r}; allowed are {', '.join(_FIELDS)}",
            "unknown_parameter",
        )
    completion_window = _text(body, "completion_window")
    return NewBatch(
        owner=owner,
        endpoint=_choice(body, "endpoint", ENDPOINTS),
        input_file_id=_text(body, "input_file_id"),
        completion_window=completion_window,
        window_s=window_s(completion_window),
        metadata=_metadata(body.get("metadata")),
        output_expires_after_s=_lifetime(body.get("output_expires_after")),
    )


def _text(body: Mapping[str, Any], name: str) -> str:
    if body.get(name) is None:
        raise InvalidInputError(name, f"{name} is missing", "missing_required_parameter")
    value = body[name]
    if not isinstance(value, str):
        raise InvalidInputError(name, f"{name} must be a string, got {reprlib.repr(value)}")
    return value


def _choice(body: Mapping[str, Any], name: str, allowed: Sequence[str]) -> str:
    value = _text(body, name)
    if value not in allowed:
        raise InvalidInputError(name, f"{value[:80]!r} is not one of: {', '.join(allowed)}")
    return value


def _metadata(given: object) -> Mapping[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict) or len(given) > _MAX_PAIRS:
        raise InvalidInputError(
            "metadata", f"must be an object of at most {_MAX_PAIRS} pairs of strings"
        )
    for name, value in given.items():
        fits = isinstance(value, str) and len(value) <= _MAX_VALUE and len(name) <= _MAX_NAME
        if not fits or "\x00" in name + value:
            raise InvalidInputError(
                f"metadata.{name[:_MAX_NAME]}",
                f"names have at most {_MAX_NAME} characters, values are strings of at most "
                f"{_MAX_VALUE}, neither with NUL; got {reprlib.repr(value)}",
            )
    return given


def _lifetime(given: object) -> int | None:
    """`output_expires_after`, OpenAI's {"anchor": "created_at", "seconds": N}."""
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("anchor") != "created_at":
        raise InvalidInputError(
            "output_expires_after",
            f'must be {{"anchor": "created_at", "seconds": N}}, got {reprlib.repr(given)}',
        )
    seconds = given.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int):
        raise InvalidInputError(
            "output_expires_after.seconds",
            f"must be a whole number of seconds, got {reprlib.repr(seconds)}",
        )
    return checked_lifetime_s("output_expires_after.seconds", seconds)
