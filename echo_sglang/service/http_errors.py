"""Errors of the batch API in OpenAI's shape: {"error": {message, type, param, code}}."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from echo_sglang.service.errors import (
    ConflictError,
    IdempotencyError,
    InvalidInputError,
    NotFoundError,
    ServiceError,
    StoreBusyError,
    StoreFullError,
    TooLargeError,
)

logger = logging.getLogger(__name__)

RETRY_AFTER_S = "5"


class UnavailableError(ServiceError):
    """The batch service does not take requests now: the server starts or stops (503)."""


class NotEnabledError(ServiceError):
    """The server was started without the batch service (501)."""


class ServiceRoute(APIRoute):
    """A route whose errors are all answered in OpenAI's shape."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return answer_error(_of_validation(error))
            except ServiceError as error:
                return answer_error(error)

        return guarded


def answer_error(error: ServiceError) -> Response:
    """The answer to a request that met this error."""
    status, kind, code = _classified(error)
    if status >= 500:
        logger.warning("answered with %d: %s", status, error)
    headers = {"Retry-After": RETRY_AFTER_S} if status == 503 else {}
    param = error.param if isinstance(error, InvalidInputError) else None
    return JSONResponse(error_body(str(error), kind, param, code), status, headers)


def error_body(message: str, kind: str, param: str | None, code: str | None) -> Mapping[str, Any]:
    """The JSON object of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _classified(error: ServiceError) -> tuple[int, str, str]:
    """HTTP status, type and code."""
    match error:
        case TooLargeError():
            return 413, "invalid_request_error", error.code
        case InvalidInputError():
            return 400, "invalid_request_error", error.code
        case NotFoundError():
            return 404, "invalid_request_error", "not_found"
        case IdempotencyError():
            return 409, "invalid_request_error", "idempotency_key_reused"
        case ConflictError():
            return 409, "invalid_request_error", "conflict"
        case NotEnabledError():
            return 501, "server_error", "batch_service_off"
        case UnavailableError():
            return 503, "server_error", "unavailable"
        case StoreBusyError():
            return 503, "server_error", "storage_busy"
        case StoreFullError():
            return 503, "server_error", "storage_full"
        case _:
            return 500, "server_error", "storage_error"


def _of_validation(error: RequestValidationError) -> InvalidInputError:
    """The first fault of a query or path that FastAPI refused."""
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    return InvalidInputError(
        param, f"{param}: {first['msg']}, got {str(first.get('input'))[:80]!r}"
    )
