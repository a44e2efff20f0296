"""The JSON lines of output and error files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from echo_sglang.service.model import (
    BatchState,
    EngineAnswer,
    Line,
    LineResult,
    ResultKind,
    Usage,
)

MAX_CHOICES = 128
MAX_TOKENS = 2**31 - 1
_COUNT_LIMITS = {
    "n": MAX_CHOICES,
    "best_of": MAX_CHOICES,
    "max_tokens": MAX_TOKENS,
    "max_completion_tokens": MAX_TOKENS,
    "max_output_tokens": MAX_TOKENS,
}

UNFINISHED = {
    BatchState.CANCELLED: ("batch_cancelled", "The batch was cancelled before this line ran."),
    BatchState.EXPIRED: ("batch_expired", "The completion window ended before this line ran."),
}
"""Code and message of lines that a batch which ends so leaves without an answer."""


class ResultMaker:
    """Makes results. new_hex: for ids, see `store.random_hex`."""

    def __init__(self, new_hex: Callable[[], str]) -> None:
        self._new_hex = new_hex

    def answered(self, line: Line, answer: EngineAnswer) -> LineResult:
        """A line that the engine answered, well or not."""
        response = {
            "status_code": answer.status,
            "request_id": answer.request_id,
            "body": answer.body,
        }
        good = 200 <= answer.status < 300
        return LineResult(
            number=line.number,
            kind=ResultKind.OUTPUT if good else ResultKind.ERROR,
            payload=self._payload(line, response, None),
            usage=_usage(answer.body) if good else Usage(),
        )

    def refused(self, line: Line, param: str, message: str) -> LineResult:
        """A line whose body cannot be run: a 400 as the server would have given."""
        body = {
            "error": {
                "message": message,
                "type": "invalid_request_error",
                "param": param,
                "code": "invalid_value",
            }
        }
        answer = EngineAnswer(status=400, body=body, request_id=f"req_{self._new_hex()}")
        return self.answered(line, answer)

    def unanswered(self, line: Line, code: str, message: str) -> LineResult:
        """A line that never got an answer, and why."""
        return LineResult(
            number=line.number,
            kind=ResultKind.ERROR,
            payload=self._payload(line, None, {"code": code, "message": message}),
        )

    def _payload(
        self, line: Line, response: Mapping[str, Any] | None, error: Mapping[str, str] | None
    ) -> bytes:
        return orjson.dumps(
            {
                "id": f"batch_req_{self._new_hex()}",
                "custom_id": line.custom_id,
                "response": response,
                "error": error,
            }
        )


def fault_of_body(body: Mapping[str, Any]) -> tuple[str, str] | None:
    """(param, message) of what makes a body unfit for a batch whatever the model is, or None.

    Values that would keep the engine busy for ages are caught here, the rest by the engine.
    """
    if body.get("stream"):
        return "stream", "stream is not possible in a batch; leave it out"
    for param, limit in _COUNT_LIMITS.items():
        value = body.get(param)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            return param, f"{param} must be a whole number, got {value!r:.80}"
        if not 1 <= value <= limit:
            return param, f"{param} is {value}, allowed is 1 to {limit}"
    return None


def _usage(body: Mapping[str, Any]) -> Usage:
    usage = body.get("usage") or {}
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return Usage(
        input_tokens=usage.get("prompt_tokens") or usage.get("input_tokens") or 0,
        output_tokens=usage.get("completion_tokens") or usage.get("output_tokens") or 0,
        cached_tokens=details.get("cached_tokens") or 0,
    )
