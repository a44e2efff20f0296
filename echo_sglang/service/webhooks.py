"""Sends the events of the outbox as standard webhooks, at least once, with backoff.

Signed by the `standardwebhooks` library: headers webhook-id, webhook-timestamp and
webhook-signature, which OpenAI's clients verify with `client.webhooks.unwrap`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
import orjson
from standardwebhooks.webhooks import Webhook

from echo_sglang.service.errors import InvalidInputError, StoreError
from echo_sglang.service.model import Event
from echo_sglang.service.outbox import Outbox

logger = logging.getLogger(__name__)

RETRY_AFTER_S = (5.0, 30.0, 120.0, 600.0, 3_600.0, 3_600.0 * 6, 3_600.0 * 24, 3_600.0 * 48)
"""Pauses after the first, second, ... failed attempt; then the event is given up."""

_HOLD_S = 60.0
_POLL_S = 1.0
_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookTarget:
    """url: where events are posted. secret: "whsec_" and base64 of the signing key."""

    url: str
    secret: str

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InvalidInputError("webhook url", f"{self.url[:80]!r} is not an http(s) URL")
        try:
            Webhook(self.secret)
        except Exception as error:
            raise InvalidInputError(
                "webhook secret", 'must be "whsec_" and base64 of at least one byte'
            ) from error


class WebhookSender:
    """Sends one event after another until cancelled."""

    def __init__(
        self,
        outbox: Outbox,
        target: WebhookTarget,
        *,
        clock: Callable[[], float],
        poll_s: float = _POLL_S,
    ) -> None:
        self._outbox = outbox
        self._target = target
        self._signer = Webhook(target.secret)
        self._clock = clock
        self._poll_s = poll_s

    async def run(self) -> None:
        """Until cancelled; what is unsent then stays in the outbox."""
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, follow_redirects=False) as client:
            while True:
                sent = 0
                with contextlib.suppress(StoreError):
                    sent = await self.send_due(client)
                if not sent:
                    await asyncio.sleep(self._poll_s)

    async def send_due(self, client: httpx.AsyncClient) -> int:
        """Try what is due once; how many were tried. Raises StoreError."""
        events = await asyncio.to_thread(self._outbox.claim, self._clock(), _HOLD_S, 3)
        for event in events:
            fault = await self._send(client, event)
            await asyncio.to_thread(self._settle, event, fault)
        return len(events)

    async def _send(self, client: httpx.AsyncClient, event: Event) -> str | None:
        """Why it was not delivered, None if it was."""
        body = event_body(event)
        now = self._clock()
        stamp = datetime.fromtimestamp(now, UTC)
        headers = {
            "content-type": "application/json",
            "webhook-id": event.id,
            "webhook-timestamp": str(int(now)),
            "webhook-signature": self._signer.sign(event.id, stamp, body.decode()),
        }
        try:
            answer = await client.post(self._target.url, content=body, headers=headers)
        except httpx.HTTPError as error:
            return repr(error)[:200]
        return None if answer.is_success else f"it answered {answer.status_code}"

    def _settle(self, event: Event, fault: str | None) -> None:
        if fault is None:
            self._outbox.sent(event.id)
        elif event.attempts < len(RETRY_AFTER_S):
            logger.warning("webhook %s of %s: %s", event.kind, event.batch_id, fault)
            self._outbox.retry_at(event.id, self._clock() + RETRY_AFTER_S[event.attempts])
        else:
            logger.error("webhook %s of %s given up: %s", event.kind, event.batch_id, fault)
            self._outbox.give_up(event.id)


def event_body(event: Event) -> bytes:
    """The JSON that is posted; OpenAI's event object."""
    return orjson.dumps(
        {
            "id": event.id,
            "object": "event",
            "created_at": int(event.created_at),
            "type": event.kind,
            "data": {"id": event.batch_id},
        }
    )
