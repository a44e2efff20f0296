"""What every route of the batch API needs: the running service and whose request it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fastapi import Request

from echo_sglang.service.errors import InvalidInputError
from echo_sglang.service.http_errors import NotEnabledError
from echo_sglang.service.service import BatchService

Services = Callable[[], BatchService | None]
"""Gives the service of this server, None if it was started without."""

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")


def running(services: Services) -> BatchService:
    """The service. Raises NotEnabledError, UnavailableError."""
    service = services()
    if service is None:
        raise NotEnabledError(
            "this server has no batch service; start it with --echo-data-dir FOLDER"
        )
    service.require_running()
    return service


def owner_of(service: BatchService, request: Request) -> str:
    """The tenant of a request, "" on a server without tenants. Raises InvalidInputError."""
    name = service.settings.tenant_header
    if name is None:
        return ""
    tenant = request.headers.get(name, "")
    if not _TENANT.fullmatch(tenant):
        raise InvalidInputError(
            name, f"the header {name} must name the tenant: 1 to 64 of letters, digits, . _ -"
        )
    return tenant


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": text,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {
                            "type": "object",
                            "required": ["message", "type", "param", "code"],
                        }
                    },
                }
            }
        },
    }
    for status, text in (
        (400, "A value is not allowed"),
        (404, "No such file or batch"),
        (409, "The present state forbids it"),
        (413, "Too many bytes"),
        (501, "The server has no batch service"),
        (503, "The server starts or stops"),
    )
}
"""For the published description of the API."""
