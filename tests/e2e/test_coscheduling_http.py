"""Online and offline requests together over HTTP, on the whole model in float32."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from tests.e2e.conftest import ServerFactory
from tests.e2e.http_kit import OFFLINE, ONLINE, generate, prompt, status, until, until_idle
from tests.e2e.live_server import LiveServer

pytestmark = pytest.mark.server

SLOTS = 3
KV_TOKENS = 1600
DOCUMENTS = 5
QUESTIONS = 10
BURSTS = 3


@pytest.fixture(scope="module")
def server(start_server: ServerFactory) -> LiveServer:
    return start_server(
        flags=[
            *("--max-running-requests", str(SLOTS)),
            *("--max-total-tokens", str(KV_TOKENS)),
            *("--context-length", "1024"),
            *("--chunked-prefill-size", "128"),
            *("--dtype", "float32"),
            *("--slo-ttft-ms", "600000", "--slo-tpot-ms", "600000"),
        ],
        environment={"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"},
    )


def answer_to(server: LiveServer, body: dict[str, Any]) -> dict[str, Any]:
    response = server.post("/generate", body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_preempted_requests_give_the_tokens_of_an_undisturbed_run(server: LiveServer) -> None:
    bodies = [generate(prompt(i, 50 + 10 * i), 40, OFFLINE) for i in range(SLOTS)]
    undisturbed = [answer_to(server, body)["output_ids"] for body in bodies]
    until_idle(server)
    assert server.post("/flush_cache", {}).status_code == 200
    released_before = status(server)["counters"].get("rows_released", 0)
    with ThreadPoolExecutor(max_workers=SLOTS) as clients:
        offline = [clients.submit(answer_to, server, body) for body in bodies]
        until(server, lambda s: s["requests"]["offline_running"] == SLOTS, "all slots taken")
        for i in range(2):
            online = answer_to(server, generate(prompt(50 + i, 60), 3, ONLINE))
            assert online["meta_info"]["num_retractions"] == 0
        answers = [future.result() for future in offline]
    preempted = [a for a in answers if a["meta_info"]["num_retractions"] > 0]
    assert preempted
    assert status(server)["counters"]["rows_released"] > released_before
    assert [a["output_ids"] for a in answers] == undisturbed
    memory = until_idle(server)["memory_tokens"]
    assert memory["free"] + memory["cached"] == KV_TOKENS


@pytest.mark.parametrize("tier", [ONLINE, OFFLINE], ids=["online", "offline"])
def test_a_stream_gives_each_token_once_and_in_order(
    server: LiveServer, tier: dict[str, str]
) -> None:
    body = generate(prompt(70, 40), 10, tier)
    whole = answer_to(server, body)
    events = server.stream("/generate", body)
    texts = [event["text"] for event in events]
    counts = [event["meta_info"]["completion_tokens"] for event in events]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[-1] == whole["text"]
    assert counts == sorted(counts) and counts[-1] == 10
    assert [e["meta_info"]["finish_reason"] is not None for e in events].count(True) == 1


@pytest.mark.parametrize("tier", [ONLINE, OFFLINE], ids=["online", "offline"])
def test_a_client_that_leaves_gives_its_kv_back(server: LiveServer, tier: dict[str, str]) -> None:
    stream = server.iterate("/generate", generate(prompt(80, 40), 900, tier))
    next(stream)
    assert status(server)["memory_tokens"]["locked"] > 0
    stream.close()
    seen = until_idle(server)
    assert seen["memory_tokens"]["free"] + seen["memory_tokens"]["cached"] == KV_TOKENS
    assert server.is_healthy()


def test_fifty_offline_requests_beside_bursts_all_finish_once(server: LiveServer) -> None:
    before = until_idle(server)["counters"]
    work = [
        (f"q-{d}-{q}", prompt(100 + d, 90) + prompt(1000 + 10 * d + q, 8 + q), 1 + q % 4)
        for q in range(QUESTIONS)
        for d in range(DOCUMENTS)
    ]
    with ThreadPoolExecutor(max_workers=len(work) + 5) as clients:
        offline = {
            name: clients.submit(answer_to, server, generate(tokens, num_new, OFFLINE, rid=name))
            for name, tokens, num_new in work
        }
        online = []
        for burst in range(BURSTS):
            finished = len(work) * burst // (BURSTS + 1)
            until(
                server,
                lambda s, least=finished: (
                    s["counters"].get("offline_finished", 0) - before.get("offline_finished", 0)
                    >= least
                ),
                f"{finished} offline requests finished",
            )
            bodies = [generate(prompt(300 + 5 * burst + i, 30), 4, ONLINE) for i in range(5)]
            online += list(clients.map(lambda body: answer_to(server, body), bodies))
        answers = {name: future.result() for name, future in offline.items()}
    assert len(online) == 5 * BURSTS
    assert all(a["meta_info"]["completion_tokens"] == 4 for a in online)
    for name, tokens, num_new in work:
        meta = answers[name]["meta_info"]
        assert meta["id"] == name
        assert meta["service_tier"] == "flex"
        assert meta["prompt_tokens"] == len(tokens)
        assert meta["completion_tokens"] == num_new == len(answers[name]["output_ids"])
        assert meta["finish_reason"]["type"] == "length"
    after = until_idle(server)
    gained = {k: v - before.get(k, 0) for k, v in after["counters"].items()}
    assert gained["offline_finished"] == len(work)
    assert gained["offline_prompt_tokens"] == sum(len(tokens) for _, tokens, _ in work)
    assert gained["offline_output_tokens"] == sum(num_new for _, _, num_new in work)
    # Grouped by document, nine of ten questions find the 90 tokens that they share.
    cached = sum(a["meta_info"]["cached_tokens"] for a in answers.values())
    assert cached >= DOCUMENTS * (QUESTIONS - 1) * 90 * 0.8
    assert after["memory_tokens"]["free"] + after["memory_tokens"]["cached"] == KV_TOKENS
