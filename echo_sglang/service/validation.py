"""Is this file a batch? Reads it once, line by line, and needs no server.

Memory: one line, the custom_ids, some checksums a line, and at most `max_errors` errors, however
large the file is.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from echo_sglang.service.forecast import Demand, output_tokens_of
from echo_sglang.service.model import EMBEDDINGS, ENDPOINTS, BatchError, Line
from echo_sglang.service.prefix_key import PromptKeys, prompt_text

_BOM = b"\xef\xbb\xbf"
_MAX_CUSTOM_ID = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationLimits:
    """What a batch file may hold; more errors than `max_errors` are not looked for."""

    max_lines: int = 50_000
    max_line_bytes: int = 16 << 20
    max_errors: int = 100


@dataclass(frozen=True, slots=True)
class _Fault(Exception):
    code: str
    message: str
    param: str | None = None


class Validation:
    """One reading of one file.

    endpoint: what all lines must ask; None takes it from the first good line.
    After `lines` is used up: `errors` (none if the file is acceptable), `model`, `num_lines`,
    `demand`.
    """

    def __init__(
        self,
        endpoint: str | None,
        limits: ValidationLimits = ValidationLimits(),
        *,
        batch_id: str = "",
    ) -> None:
        self.endpoint = endpoint
        self.model: str | None = None
        self.num_lines = 0
        self.errors: list[BatchError] = []
        self._limits = limits
        self._batch_id = batch_id
        self._first_seen: dict[str, int] = {}
        self._keys = PromptKeys()
        self._embedded_bytes = 0
        self._output_tokens = 0

    @property
    def demand(self) -> Demand:
        """Of the good lines so far."""
        prompt_bytes = self._keys.new_bytes + self._embedded_bytes
        return Demand(prompt_bytes=prompt_bytes, output_tokens=self._output_tokens)

    def lines(self, pieces: Iterable[bytes]) -> Iterator[Line]:
        """The good lines of the file whose bytes are `pieces`, until there are too many
        errors. A file with any error is not a batch, so what was yielded is then void."""
        number = 0
        for offset, raw in split_lines(pieces, self._limits.max_line_bytes):
            number += 1
            if raw is not None and not raw.strip():
                continue
            self.num_lines += 1
            if self.num_lines > self._limits.max_lines:
                message = f"the file has more than {self._limits.max_lines:,} lines; split it"
                self._add(_Fault("too_many_tasks", message), None)
                return
            try:
                yield self._check(number, offset, raw)
            except _Fault as fault:
                self._add(fault, number)
                if len(self.errors) >= self._limits.max_errors:
                    return
        if not self.num_lines:
            self._add(_Fault("empty_file", "the file has no lines"), None)

    def _check(self, number: int, offset: int, raw: bytes | None) -> Line:
        if raw is None:
            raise _Fault(
                "line_too_large",
                f"the line has more than {self._limits.max_line_bytes:,} bytes",
            )
        entry = _parsed(raw)
        custom_id = self._custom_id(entry)
        body = self._body(entry)
        endpoint = self._endpoint(entry)
        self._check_model(body)
        first = self._first_seen.setdefault(custom_id, number)
        if first != number:
            raise _Fault(
                "duplicate_custom_id",
                f"custom_id {reprlib.repr(custom_id)} is that of line {first} already",
                "custom_id",
            )
        return Line(
            batch_id=self._batch_id,
            number=number,
            custom_id=custom_id,
            offset=offset,
            size_bytes=len(raw),
            order_key=self._count(endpoint, body),
        )

    def _count(self, endpoint: str, body: Mapping[str, Any]) -> bytes:
        """Add the line to the demand; its order key."""
        if endpoint == EMBEDDINGS:
            self._embedded_bytes += len(orjson.dumps(body.get("input")))
        else:
            self._output_tokens += output_tokens_of(body)
        return self._keys.key(endpoint, self.model, prompt_text(endpoint, body))

    def _custom_id(self, entry: Mapping[str, Any]) -> str:
        custom_id = _required(entry, "custom_id")
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_CUSTOM_ID:
            raise _Fault(
                "invalid_custom_id",
                f"custom_id must be a string of 1 to {_MAX_CUSTOM_ID} characters, got "
                f"{reprlib.repr(custom_id)}",
                "custom_id",
            )
        if "\x00" in custom_id:
            raise _Fault("invalid_custom_id", "custom_id has a NUL character", "custom_id")
        return custom_id

    def _body(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        method = _required(entry, "method")
        if method != "POST":
            raise _Fault(
                "invalid_method", f"method must be 'POST', got {reprlib.repr(method)}", "method"
            )
        body = _required(entry, "body")
        if not isinstance(body, dict):
            raise _Fault("invalid_body", "body must be an object", "body")
        return body

    def _endpoint(self, entry: Mapping[str, Any]) -> str:
        url = _required(entry, "url")
        if self.endpoint is None and url in ENDPOINTS:
            self.endpoint = url
        if url != self.endpoint or not isinstance(url, str):
            expected = repr(self.endpoint) if self.endpoint else f"one of {', '.join(ENDPOINTS)}"
            raise _Fault("url_mismatch", f"url is {reprlib.repr(url)}, expected {expected}", "url")
        return url

    def _check_model(self, body: Mapping[str, Any]) -> None:
        model = _required(body, "model", "body.model")
        if not isinstance(model, str) or not model or "\x00" in model:
            raise _Fault(
                "invalid_model", f"model must be a name, got {reprlib.repr(model)}", "body.model"
            )
        if self.model is None:
            self.model = model
        if model != self.model:
            raise _Fault(
                "model_mismatch",
                f"model is {reprlib.repr(model)}, in earlier lines {reprlib.repr(self.model)}; "
                "one file, one model",
                "body.model",
            )

    def _add(self, fault: _Fault, number: int | None) -> None:
        self.errors.append(
            BatchError(code=fault.code, message=fault.message, line=number, param=fault.param)
        )


def split_lines(pieces: Iterable[bytes], max_line_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file and where each begins, without line end and byte order mark; None
    instead of one that is longer than allowed, which is skipped without being kept."""
    rest = b""
    offset = 0
    too_long = False
    for piece in pieces:
        *whole, tail = piece.split(b"\n")
        for end in whole:
            raw = rest + end if rest else end
            size = len(raw)
            if too_long or size > max_line_bytes:
                yield offset, None
            else:
                yield _trimmed(offset, raw)
            offset += size + 1
            rest = b""
            too_long = False
        rest = rest + tail if rest else tail
        if len(rest) > max_line_bytes:
            offset += len(rest)
            rest = b""
            too_long = True
    if too_long:
        yield offset, None
    elif rest:
        yield _trimmed(offset, rest)


def _trimmed(offset: int, raw: bytes) -> tuple[int, bytes]:
    if raw.endswith(b"\r"):
        raw = raw[:-1]
    if offset == 0 and raw.startswith(_BOM):
        return len(_BOM), raw[len(_BOM) :]
    return offset, raw


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        entry = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _Fault("invalid_json_line", f"not JSON in UTF-8: {error}"[:300]) from None
    if not isinstance(entry, dict):
        raise _Fault("invalid_json_line", "the line must be a JSON object")
    return entry


def _required(entry: Mapping[str, Any], name: str, param: str | None = None) -> Any:
    if name not in entry:
        raise _Fault("missing_required_parameter", f"{param or name} is missing", param or name)
    return entry[name]
