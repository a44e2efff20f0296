"""The KV cache of a real server: page sizes, SGLang's own cache, none at all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import ServerFactory
from tests.e2e.http_kit import OFFLINE, ONLINE, generate, prompt, status, until_idle
from tests.e2e.live_server import LiveServer

pytestmark = pytest.mark.server

KV_TOKENS = 1600
DOCUMENTS = 10
DOCUMENT_TOKENS = 320
QUESTIONS = 6
CACHES = {
    "by value, pages of 16": ("--page-size", "16"),
    "by class, pages of 1": ("--echo-eviction", "class-lru"),
    "sglang's own": ("--echo-eviction", "lru"),
    "none": ("--disable-radix-cache",),
}


@pytest.fixture(scope="module", params=CACHES)
def served(request: pytest.FixtureRequest, start_server: ServerFactory) -> Iterator[Any]:
    flags = [
        *("--max-running-requests", "3"),
        *("--max-total-tokens", str(KV_TOKENS)),
        *("--context-length", "1024"),
        *("--chunked-prefill-size", "128"),
        *("--dtype", "float32"),
        *("--json-model-override-args", '{"num_hidden_layers": 4}'),
        *("--slo-ttft-ms", "600000", "--slo-tpot-ms", "600000"),
        *CACHES[request.param],
    ]
    environment = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"}
    server = start_server(flags=flags, environment=environment)
    yield request.param, server
    server.stop()


def question(document: int, number: int) -> list[int]:
    return [*prompt(document, DOCUMENT_TOKENS), *prompt(100 + 10 * document + number, 16)]


def answer_to(server: LiveServer, body: dict[str, Any]) -> dict[str, Any]:
    response = server.post("/generate", body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_documents_larger_than_the_cache_are_computed_about_once(served: Any) -> None:
    """3,200 tokens of documents in a cache of 1,600, their questions shuffled, chats between."""
    name, server = served
    asked = [(d, q) for d in range(DOCUMENTS) for q in range(QUESTIONS)]
    random.Random(3).shuffle(asked)
    bodies = [generate(question(d, q), 4, OFFLINE) for d, q in asked]
    with ThreadPoolExecutor(max_workers=len(bodies) + 1) as clients:
        offline = [clients.submit(answer_to, server, body) for body in bodies]
        chat = prompt(90, 40)
        for turn in range(4):
            told = answer_to(server, generate(chat, 6, ONLINE))
            chat = [*chat, *told["output_ids"], *prompt(91 + turn, 20)]
        answers = [future.result() for future in offline]
    assert [a["meta_info"]["completion_tokens"] for a in answers] == [4] * len(bodies)
    memory = until_idle(server)["memory_tokens"]
    assert memory["free"] + memory["cached"] == KV_TOKENS
    cached = sum(a["meta_info"]["cached_tokens"] for a in answers)
    best = DOCUMENTS * (QUESTIONS - 1) * DOCUMENT_TOKENS
    if name == "none":
        assert cached == memory["cached"] == 0
    elif name.startswith("by value"):
        # Questions that came before the pool knew their siblings may cost a document twice.
        assert cached >= 0.8 * best


def test_answers_do_not_depend_on_what_the_cache_kept(served: Any) -> None:
    _, server = served
    body = generate(question(0, 0), 8, ONLINE)
    again = answer_to(server, body)
    until_idle(server)
    assert server.post("/flush_cache", {}).status_code == 200
    fresh = answer_to(server, body)
    assert fresh["meta_info"]["cached_tokens"] == 0
    assert fresh["output_ids"] == again["output_ids"]


def test_status_tells_what_is_kept_for_online_requests(served: Any) -> None:
    name, server = served
    answer_to(server, generate(prompt(200, 64), 4, ONLINE))
    memory = status(server)["memory_tokens"]
    assert 0 < memory["reserved_for_online"] <= KV_TOKENS // 10
    if name.startswith("by value"):
        assert memory["protected_online"] >= 64
    else:
        assert memory["protected_online"] == 0
