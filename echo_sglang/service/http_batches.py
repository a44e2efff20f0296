"""Routes of /v1/batches, as OpenAI's clients use them; and pause, resume, retry."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from echo_sglang.service.forecast import Demand, Speed
from echo_sglang.service.http_body import idempotency_key, new_batch, read_object
from echo_sglang.service.http_context import ERROR_RESPONSES, Services, owner_of, running
from echo_sglang.service.http_errors import ServiceRoute
from echo_sglang.service.http_views import batch_view, list_view
from echo_sglang.service.model import ENDPOINTS, Batch, BatchState
from echo_sglang.service.retry import retry_failed
from echo_sglang.service.service import BatchService

MAX_PAGE = 100
DEFAULT_PAGE = 20

_CREATE_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["input_file_id", "endpoint", "completion_window"],
                    "additionalProperties": False,
                    "properties": {
                        "input_file_id": {"type": "string"},
                        "endpoint": {"type": "string", "enum": list(ENDPOINTS)},
                        "completion_window": {"type": "string", "examples": ["24h", "90m"]},
                        "metadata": {
                            "type": "object",
                            "nullable": True,
                            "additionalProperties": {"type": "string", "maxLength": 512},
                        },
                        "output_expires_after": {
                            "type": "object",
                            "required": ["anchor", "seconds"],
                            "properties": {
                                "anchor": {"type": "string", "enum": ["created_at"]},
                                "seconds": {"type": "integer"},
                            },
                        },
                    },
                }
            }
        },
    }
}


def batches_router(services: Services) -> APIRouter:
    """The routes. `services`: see `http_context.Services`."""
    router = APIRouter(
        prefix="/v1/batches", route_class=ServiceRoute, tags=["batches"], responses=ERROR_RESPONSES
    )

    @router.post("", openapi_extra=_CREATE_SCHEMA)
    async def create_batch(request: Request) -> Mapping[str, Any]:
        """Make a batch of an uploaded file. With an Idempotency-Key a repeated request answers
        with the batch of the first one."""
        service = running(services)
        owner = owner_of(service, request)
        body = await read_object(request)
        new = new_batch(owner, body)
        key = idempotency_key(request, body)
        batch, _ = await asyncio.to_thread(service.store.batches.create, new, service.clock(), key)
        return await _changed(service, batch)

    @router.get("")
    async def list_batches(
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    ) -> Mapping[str, Any]:
        """Batches, the newest first."""
        service = running(services)
        batches, more = await asyncio.to_thread(
            service.store.batches.page, owner_of(service, request), limit=limit, after=after
        )
        return list_view([await _view(service, batch) for batch in batches], more)

    @router.post("/{batch_id:path}/cancel")
    async def cancel_batch(request: Request, batch_id: str) -> Mapping[str, Any]:
        """Abort what runs and keep what finished; a batch that has ended is a 409."""
        service = running(services)
        owner = owner_of(service, request)
        batch = await asyncio.to_thread(
            service.store.batches.cancel, owner, batch_id, service.clock()
        )
        return await _changed(service, batch)

    @router.post("/{batch_id:path}/pause")
    async def pause_batch(request: Request, batch_id: str) -> Mapping[str, Any]:
        """Start no more lines of it until it is resumed; its deadline stays."""
        service = running(services)
        owner = owner_of(service, request)
        batch = await asyncio.to_thread(service.store.batches.pause, owner, batch_id)
        return await _changed(service, batch)

    @router.post("/{batch_id:path}/resume")
    async def resume_batch(request: Request, batch_id: str) -> Mapping[str, Any]:
        """Go on with a paused batch."""
        service = running(services)
        owner = owner_of(service, request)
        batch = await asyncio.to_thread(service.store.batches.resume, owner, batch_id)
        return await _changed(service, batch)

    @router.post("/{batch_id:path}/retry")
    async def retry_batch(request: Request, batch_id: str) -> Mapping[str, Any]:
        """Make a new batch of the failed lines of one that has ended."""
        service = running(services)
        owner = owner_of(service, request)
        batch = await asyncio.to_thread(
            retry_failed,
            service.store,
            service.files,
            owner,
            batch_id,
            service.clock(),
            idempotency_key(request, ["retry", batch_id]),
        )
        return await _changed(service, batch)

    @router.get("/{batch_id:path}")
    async def get_batch(request: Request, batch_id: str) -> Mapping[str, Any]:
        """One batch."""
        service = running(services)
        owner = owner_of(service, request)
        batch = await asyncio.to_thread(service.store.batches.get, owner, batch_id)
        return await _view(service, batch)

    return router


async def _changed(service: BatchService, batch: Batch) -> Mapping[str, Any]:
    service.wake()
    return await _view(service, batch)


async def _view(service: BatchService, batch: Batch) -> Mapping[str, Any]:
    """With a forecast from the engine's speed as long as the batch has no pace of its own."""
    lines_per_s = service.lines_per_s(batch)
    speed, ahead = Speed(), Demand()
    if lines_per_s is None and batch.state is BatchState.IN_PROGRESS:
        speed = await service.speed()
        ahead = await asyncio.to_thread(service.store.batches.ahead_of, batch)
    return batch_view(batch, lines_per_s, service.clock(), speed, ahead)
