"""Multipart uploads, streamed: memory is a piece of the file, however large it is."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from echo_sglang.service.errors import InvalidInputError, TooLargeError
from echo_sglang.service.files import UPLOAD_PURPOSES, Files, Upload
from echo_sglang.service.model import FileObject

_MAX_PARTS = 8
_MAX_VALUE_BYTES = 1_024
_WRITE_BYTES = 1 << 20
_FORM_BYTES = 16_384
"""What a form may add to its file."""
_UNNAMED = "upload"
"""What OpenAI's client calls bytes that have no name."""
_FILE_FIELD = "file"
_LIFETIME_FIELDS = ("expires_after[anchor]", "expires_after[seconds]")
_FIELDS = ("purpose", *_LIFETIME_FIELDS)


class _Form:
    """What the parser has found and nobody has taken yet.

    filename: of the file part, None before it. pieces: its bytes. fields: the other parts.
    """

    def __init__(self, boundary: bytes) -> None:
        self.filename: str | None = None
        self.pieces = bytearray()
        self.fields: dict[str, str] = {}
        self.ended = False
        self._parts = 0
        self._name = ""
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._header = bytearray()
        self._header_value = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._header_goes_on,
                "on_header_value": self._header_value_goes_on,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._part_ends,
                "on_end": self._all_ends,
            },
        )

    def feed(self, piece: bytes) -> None:
        """Raises InvalidInputError."""
        try:
            self._parser.write(piece)
        except MultipartParseError as error:
            raise InvalidInputError(
                "body", f"the multipart body is broken: {error}"[:200], "invalid_multipart"
            ) from None

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise InvalidInputError(
                "body", f"more than {_MAX_PARTS} parts in the form", "invalid_multipart"
            )
        self._headers = {}
        self._value = bytearray()

    def _header_goes_on(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value_goes_on(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_ends(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._header_value)
        self._header = bytearray()
        self._header_value = bytearray()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name != _FILE_FIELD:
            if self.filename is not None and self._name in _LIFETIME_FIELDS:
                raise InvalidInputError("expires_after", "must come before the file in the form")
            if self._name not in _FIELDS:
                raise InvalidInputError(
                    self._name[:64] or "body",
                    f"unknown field {self._name[:64]!r}; allowed are "
                    f"{', '.join([_FILE_FIELD, *_FIELDS])}",
                    "unknown_parameter",
                )
            return
        if self.filename is not None:
            raise InvalidInputError("file", "more than one file in the form", "invalid_multipart")
        if b"filename" not in options:
            raise InvalidInputError("file", "must be a file with a file name, not a plain field")
        self.filename = options[b"filename"].decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == _FILE_FIELD:
            self.pieces += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_VALUE_BYTES:
            raise InvalidInputError(
                self._name, f"{self._name} has more than {_MAX_VALUE_BYTES:,} bytes"
            )

    def _part_ends(self) -> None:
        if self._name != _FILE_FIELD:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _all_ends(self) -> None:
        self.ended = True


async def receive_upload(request: Request, files: Files, owner: str, max_bytes: int) -> FileObject:
    """Store the file of a multipart form, and acknowledge only what is durable.

    max_bytes: most that `files` takes; a body that says it is larger is not read.
    `expires_after` must come before the file; `purpose` may come after it.
    Raises InvalidInputError, TooLargeError, StoreError; nothing is kept then.
    """
    form = _Form(_boundary(request))
    body = request.stream()
    upload: Upload | None = None
    try:
        _check_length(request, max_bytes)
        async for piece in body:
            form.feed(piece)
            if upload is None and form.filename is not None:
                upload = await asyncio.to_thread(_begin, form, files, owner)
            if upload is not None and len(form.pieces) >= _WRITE_BYTES:
                await _write(upload, form)
        return await _finish(form, upload)
    except ClientDisconnect as error:
        await _abort(upload)
        raise InvalidInputError("body", "the client went away", "client_disconnected") from error
    except BaseException:
        await _abort(upload)
        with contextlib.suppress(ClientDisconnect):
            await _discard(body, max_bytes)
        raise


async def _write(upload: Upload, form: _Form) -> None:
    piece = bytes(form.pieces)
    form.pieces.clear()
    await asyncio.to_thread(upload.write, piece)


async def _finish(form: _Form, upload: Upload | None) -> FileObject:
    if not form.ended:
        raise InvalidInputError("body", "the multipart body ends too early", "invalid_multipart")
    if upload is None:
        raise InvalidInputError("file", "file is missing", "missing_required_parameter")
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise InvalidInputError("purpose", "purpose is missing", "missing_required_parameter")
    if purpose not in UPLOAD_PURPOSES:
        raise InvalidInputError("purpose", f"{purpose[:40]!r} is not one of: batch")
    await _write(upload, form)
    return await asyncio.to_thread(upload.finish)


def _begin(form: _Form, files: Files, owner: str) -> Upload:
    """A purpose that is still to come is taken for "batch", and checked in the end."""
    purpose = form.fields.get("purpose", UPLOAD_PURPOSES[0])
    name = form.filename
    if name == _UNNAMED:
        name = f"{_UNNAMED}.jsonl"
    assert name is not None
    return files.begin(owner, name, purpose, _lifetime_s(form.fields))


def _lifetime_s(fields: Mapping[str, str]) -> int | None:
    anchor, seconds = (fields.get(name) for name in _LIFETIME_FIELDS)
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidInputError(
            "expires_after.anchor", f"must be 'created_at', got {(anchor or '')[:40]!r}"
        )
    if seconds is None or not re.fullmatch(r"[0-9]{1,12}", seconds):
        raise InvalidInputError(
            "expires_after.seconds", f"must be whole seconds, got {(seconds or '')[:40]!r}"
        )
    return int(seconds)


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidInputError(
            "content-type",
            "must be multipart/form-data with a boundary; send the file as a form field",
            "unsupported_media_type",
        )
    if request.headers.get("content-encoding", "identity") != "identity":
        raise InvalidInputError(
            "content-encoding", "compressed uploads are not taken", "unsupported_media_type"
        )
    return options[b"boundary"]


def _check_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes + _FORM_BYTES:
        raise TooLargeError(
            "file",
            f"the file has more than {max_bytes:,} bytes, which is the most allowed; split it",
        )


async def _abort(upload: Upload | None) -> None:
    if upload is not None:
        await asyncio.to_thread(upload.abort)


async def _discard(body: AsyncIterator[bytes], max_bytes: int) -> None:
    """Take the rest of a refused body, within bounds: a client that still sends would see a
    broken connection instead of the answer."""
    size = 0
    async for piece in body:
        size += len(piece)
        if size > max_bytes:
            return
