"""Webhooks against a real receiver on loopback."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from echo_sglang.service.errors import InvalidInputError
from echo_sglang.service.store import Store, open_store
from echo_sglang.service.webhooks import RETRY_AFTER_S, WebhookSender, WebhookTarget
from tests.unit.service.http_kit import lines, world
from tests.unit.service.store_kit import add_file, create

SECRET = "whsec_c2VjcmV0IG9mIHRlc3Rz"


@dataclass
class Receiver:
    """What came in; `statuses` are answered one after another, then 200."""

    url: str
    statuses: list[int]
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    something: threading.Event = field(default_factory=threading.Event)


@contextmanager
def receiving(*statuses: int) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.came.append((dict(self.headers.items()), body))
            self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
            self.end_headers()
            receiver.something.set()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}/hook", list(statuses))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_end_of_a_batch_is_told_with_a_signature_that_verifies(tmp_path: Path) -> None:
    with receiving() as receiver:
        target = WebhookTarget(url=receiver.url, secret=SECRET)
        with world(tmp_path, webhook=target) as one:
            batch = one.until(one.submit(lines("a"))["id"], "completed")
            assert receiver.something.wait(20)
    [(headers, body)] = receiver.came
    Webhook(SECRET).verify(body.decode(), {name.lower(): value for name, value in headers.items()})
    event = json.loads(body)
    assert (event["object"], event["type"]) == ("event", "batch.completed")
    assert event["data"] == {"id": batch["id"]}
    with pytest.raises(Exception, match="signature"):
        Webhook("whsec_b3RoZXI=").verify(
            body.decode(), {name.lower(): value for name, value in headers.items()}
        )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with one event that is due: its batch ran out of time before it was validated."""
    opened = open_store(tmp_path, events=True)
    create(opened, add_file(opened), now=100.0, window_s=10.0)
    [(lease, _)] = opened.work.acquire("one", 200.0, 30.0, 5)
    opened.endings.expire_unvalidated(lease, 200.0)
    yield opened
    opened.close()


def tries_at(store: Store, url: str, moments: list[float]) -> list[int]:
    """How many events were tried at each moment."""
    now = [0.0]
    target = WebhookTarget(url=url, secret=SECRET)
    sender = WebhookSender(store.outbox, target, clock=lambda: now[0])

    async def run() -> list[int]:
        tried = []
        async with httpx.AsyncClient() as client:
            for moment in moments:
                now[0] = moment
                tried.append(await sender.send_due(client))
        return tried

    return asyncio.run(run())


def test_a_failed_webhook_is_sent_again_later_with_the_same_id(store: Store) -> None:
    with receiving(500, 302) as receiver:
        moments = [300.0, 300.0 + RETRY_AFTER_S[0] - 1, 306.0, 306.0 + RETRY_AFTER_S[1], 9e9]
        assert tries_at(store, receiver.url, moments) == [1, 0, 1, 1, 0]
    assert len({headers["webhook-id"] for headers, _ in receiver.came}) == 1
    assert {json.loads(body)["type"] for _, body in receiver.came} == {"batch.expired"}


def test_a_webhook_that_never_arrives_is_given_up(store: Store) -> None:
    moments = [1_000.0 + 1e6 * number for number in range(len(RETRY_AFTER_S) + 2)]
    tried = tries_at(store, "http://127.0.0.1:9/nobody", moments)
    assert tried == [1] * (len(RETRY_AFTER_S) + 1) + [0]


@pytest.mark.parametrize(
    ("url", "secret"), [("ftp://x", SECRET), ("http://x", "whsec_!"), ("http://x", "")]
)
def test_a_target_that_cannot_work_is_refused(url: str, secret: str) -> None:
    with pytest.raises(InvalidInputError, match=r"webhook|URL|whsec"):
        WebhookTarget(url=url, secret=secret)
