"""A server of the interface that profiling needs, over real HTTP, that computes nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LIMITS = {
    "chunk_tokens": 64,
    "rows": 6,
    "kv_tokens": 4096,
    "context_tokens": 1024,
    "vocabulary": 5000,
}


class FakeServer:
    """Remembers every /generate; `status` may be changed by a test.

    refuse_after: the number of requests after which /generate answers 503. takes_s: how long it
    takes to answer a body.
    """

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.refuse_after: int | None = None
        self.stays_busy = False
        self.takes_s: Callable[[dict[str, Any]], float] = lambda _: 0.0
        self.status: dict[str, Any] = {
            "requests": {"online_running": 0, "offline_pooled": 0},
            "limits": dict(LIMITS),
            "step_trace": {
                "rows_recorded": 0,
                "rows_written": 0,
                "rows_dropped": 0,
                "error": None,
            },
        }
        self.url = ""
        self._lock = threading.Lock()

    def generate(self, body: dict[str, Any]) -> tuple[int, str]:
        """Status code and text of an answer."""
        with self._lock:
            self.bodies.append(body)
            number = len(self.bodies)
            self.status["step_trace"]["rows_recorded"] += 1
            if self.stays_busy:
                self.status["requests"]["online_running"] = 1
        if self.refuse_after is not None and number > self.refuse_after:
            return 503, '{"error": "full"}'
        time.sleep(self.takes_s(body))
        outputs = body["sampling_params"]["max_new_tokens"]
        events = "".join(f'data: {{"index": {i}}}\n\n' for i in range(outputs))
        return 200, events + "data: [DONE]\n\n"


@contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """Serve it on a free loopback port until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, json.dumps(server.status))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer(*server.generate(body))

        def answer(self, code: int, text: str) -> None:
            payload = text.encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, args=(0.01,))
    thread.start()
    server.url = f"http://127.0.0.1:{http_server.server_port}"
    try:
        yield server
    finally:
        http_server.shutdown()
        thread.join()
        http_server.server_close()
