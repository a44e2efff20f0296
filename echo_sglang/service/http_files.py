"""Routes of /v1/files, as OpenAI's clients use them, and results while a batch still runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from echo_sglang.service.errors import NotFoundError
from echo_sglang.service.files import RESULT_PURPOSE
from echo_sglang.service.http_content import growing_lines, peeked, stored_bytes
from echo_sglang.service.http_context import ERROR_RESPONSES, Services, owner_of, running
from echo_sglang.service.http_errors import ServiceRoute
from echo_sglang.service.http_upload import receive_upload
from echo_sglang.service.http_views import file_view, growing_file_view, list_view
from echo_sglang.service.model import Batch, FileObject, ResultKind
from echo_sglang.service.service import BatchService

MAX_PAGE = 10_000
JSON_LINES = "application/jsonl"

_UPLOAD_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}


def files_router(services: Services) -> APIRouter:
    """The routes. `services`: see `http_context.Services`."""
    router = APIRouter(
        prefix="/v1/files", route_class=ServiceRoute, tags=["files"], responses=ERROR_RESPONSES
    )

    @router.post("", openapi_extra=_UPLOAD_SCHEMA)
    async def upload_file(request: Request) -> Mapping[str, Any]:
        """Upload a batch's input. A name that does not end in .jsonl is refused; what is in
        the file is looked at when a batch is made of it."""
        service = running(services)
        owner = owner_of(service, request)
        most = service.settings.max_upload_bytes
        return file_view(await receive_upload(request, service.files, owner, most))

    @router.get("")
    async def list_files(
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> Mapping[str, Any]:
        """Files, the newest first unless `order` is asc."""
        service = running(services)
        files, more = await asyncio.to_thread(
            service.store.files.page,
            owner_of(service, request),
            limit=limit,
            after=after,
            newest_first=order == "desc",
            purpose=purpose,
        )
        return list_view([file_view(file) for file in files], more)

    @router.get("/{file_id:path}/content", response_class=StreamingResponse)
    async def file_content(
        request: Request, file_id: str, offset: Annotated[int, Query(ge=0, le=1 << 40)] = 0
    ) -> Response:
        """The bytes of a file from line `offset` on; of a result file also while it grows."""
        service = running(services)
        owner = owner_of(service, request)
        found = await asyncio.to_thread(_find, service, owner, file_id)
        pieces = await peeked(_content(service, owner, found, offset))
        return StreamingResponse(pieces, media_type=JSON_LINES, headers=_headers(found, offset))

    @router.get("/{file_id:path}")
    async def get_file(request: Request, file_id: str) -> Mapping[str, Any]:
        """One file."""
        service = running(services)
        owner = owner_of(service, request)
        file, result = await asyncio.to_thread(_find, service, owner, file_id)
        if file is not None:
            return file_view(file)
        assert result is not None
        return growing_file_view(*result)

    @router.delete("/{file_id:path}")
    async def delete_file(request: Request, file_id: str) -> Mapping[str, Any]:
        """Delete a file that no unfinished batch reads."""
        service = running(services)
        await asyncio.to_thread(service.files.delete, owner_of(service, request), file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return router


Found = tuple[FileObject | None, tuple[Batch, ResultKind] | None]
"""A stored file, the batch whose result it is or will be, or both."""


def _find(service: BatchService, owner: str, file_id: str) -> Found:
    """Raises NotFoundError, also for a result file that was deleted."""
    try:
        file = service.files.get(owner, file_id)
    except NotFoundError:
        result = service.store.batches.by_result_file(owner, file_id)
        if not result[0].state.is_final:
            return None, result
        file = service.files.get(owner, file_id)
    if file.purpose != RESULT_PURPOSE:
        return file, None
    try:
        return file, service.store.batches.by_result_file(owner, file_id)
    except NotFoundError:
        return file, None


def _content(service: BatchService, owner: str, found: Found, offset: int) -> AsyncIterator[bytes]:
    file, result = found
    if file is not None:
        return stored_bytes(service.files, file, offset)
    assert result is not None
    return growing_lines(service, owner, *result, offset)


def _headers(found: Found, offset: int) -> dict[str, str]:
    """X-Incomplete: whether lines are still to come. X-Last-Line: how many lines there were
    up to the end of this answer, to be sent as `offset` next time."""
    file, result = found
    headers = {"X-Incomplete": "true" if file is None else "false"}
    if result is not None:
        batch, kind = result
        output = kind is ResultKind.OUTPUT
        lines = batch.counts.completed if output else batch.counts.failed
        headers["X-Last-Line"] = str(max(lines, offset))
    if file is not None and offset == 0:
        headers["Content-Length"] = str(file.size_bytes)
    return headers
