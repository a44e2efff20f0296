"""A small client of the batch API for the command line."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import httpx

from echo_sglang.errors import EchoError

TIMEOUT_S = 60.0
RETRY_AFTER_S = (0.5, 2.0)
"""Pauses before a batch whose request got no answer is asked for again."""


class UnreachableError(EchoError):
    """The server does not answer, or says that it cannot now."""


class RefusedError(EchoError):
    """The server refuses the request: what it said."""


class BatchClient:
    """One server. Every method raises UnreachableError and RefusedError."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def upload(self, path: Path, source: BinaryIO) -> Mapping[str, Any]:
        """Send an input file; returns the file object."""
        return self._ask(
            "POST",
            "/v1/files",
            data={"purpose": "batch"},
            files={"file": (path.name, source)},
            timeout=None,
        )

    def create(
        self, file_id: str, endpoint: str, window: str, metadata: Mapping[str, str]
    ) -> Mapping[str, Any]:
        """Make a batch: one, though the request is sent again if no answer came."""
        body = {
            "input_file_id": file_id,
            "endpoint": endpoint,
            "completion_window": window,
            "metadata": metadata,
        }
        headers = {"Idempotency-Key": str(uuid4())}
        for pause_s in RETRY_AFTER_S:
            try:
                return self._ask("POST", "/v1/batches", json=body, headers=headers)
            except UnreachableError:
                time.sleep(pause_s)
        return self._ask("POST", "/v1/batches", json=body, headers=headers)

    def get(self, batch_id: str) -> Mapping[str, Any]:
        """One batch."""
        return self._ask("GET", f"/v1/batches/{batch_id}")

    def status(self) -> object:
        """What GET /echo/status says: an object, or a list of one a replica."""
        return self._ask("GET", "/echo/status")

    def change(self, batch_id: str, verb: str) -> Mapping[str, Any]:
        """verb: "cancel", "pause", "resume" or "retry"."""
        return self._ask("POST", f"/v1/batches/{batch_id}/{verb}")

    def batches(self, limit: int) -> Iterator[Mapping[str, Any]]:
        """At most `limit` batches, the newest first."""
        after: dict[str, str] = {}
        while limit > 0:
            params = {"limit": str(min(limit, 100)), **after}
            page = self._ask("GET", "/v1/batches", params=params)
            yield from page["data"]
            limit -= len(page["data"])
            if not page["has_more"]:
                return
            after = {"after": page["last_id"]}

    def content(self, file_id: str, first_line: int = 0) -> Iterator[bytes]:
        """The bytes of a file from that line on."""
        params = {"offset": str(first_line)}
        try:
            with self._http.stream("GET", f"/v1/files/{file_id}/content", params=params) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._refusal(answer)
                yield from answer.iter_bytes()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _ask(self, method: str, path: str, **options: Any) -> Mapping[str, Any]:
        try:
            answer = self._http.request(method, path, **options)
            if not answer.is_success:
                raise self._refusal(answer)
            found: Mapping[str, Any] = answer.json()
            return found
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise UnreachableError(f"{self._url} does not answer with JSON ({error})") from error

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(
            f"{self._url} does not answer ({error}); is the server up, and is --url right?"
        )

    def _refusal(self, answer: httpx.Response) -> EchoError:
        try:
            body = answer.json()
            message = body.get("error", body)["message"]
        except (ValueError, KeyError, TypeError, AttributeError):
            message = answer.text[:300]
        text = f"{answer.status_code} from {answer.request.url.path}: {message}"
        if answer.status_code >= 500:
            return UnreachableError(text)
        return RefusedError(text)
