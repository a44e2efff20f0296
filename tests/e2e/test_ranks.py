"""Several ranks: one engine over three (tensor parallel), and two engines (data parallel)."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import rank_probe
from tests.e2e.conftest import ServerFactory
from tests.e2e.http_kit import OFFLINE, ONLINE, generate, prompt, status, until_idle
from tests.e2e.live_server import LiveServer

pytestmark = pytest.mark.server

NUM_RANKS = 3
"""SmolLM2 has nine heads and three KV heads."""

SLOTS = 3
KV_TOKENS = 1600
DOCUMENTS = 8
SETTLE_S = 30.0

SMALL = (
    *("--dtype", "float32"),
    *("--json-model-override-args", '{"num_hidden_layers": 4}'),
    *("--context-length", "1024"),
    *("--max-running-requests", str(SLOTS)),
    *("--max-total-tokens", str(KV_TOKENS)),
    *("--chunked-prefill-size", "128"),
)


def answer_to(server: LiveServer, body: dict[str, Any]) -> dict[str, Any]:
    response = server.post("/generate", body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def leave(server: LiveServer, body: dict[str, Any]) -> None:
    """Read one token and go."""
    stream = server.iterate("/generate", body)
    next(stream)
    stream.close()


def settle(holds: Callable[[], bool]) -> bool:
    """Whether it comes true within SETTLE_S."""
    give_up_at_s = time.monotonic() + SETTLE_S
    while not holds() and time.monotonic() < give_up_at_s:
        time.sleep(0.1)
    return holds()


@pytest.fixture(scope="module")
def probe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(start_server: ServerFactory, probe_folder: Path) -> LiveServer:
    """Three ranks with tight SLOs, so that what is decided depends on the first rank's clock."""
    return start_server(
        flags=[
            *SMALL,
            *("--tp-size", str(NUM_RANKS)),
            *("--slo-ttft-ms", "400", "--slo-tpot-ms", "1000"),
        ],
        environment={
            "OMP_NUM_THREADS": "1",
            "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
            **rank_probe.install(probe_folder),
        },
    )


def test_three_ranks_run_the_same_batches_under_random_delays(
    ranks: LiveServer, probe_folder: Path
) -> None:
    # 8 documents of 180 tokens do not fit into 1,600 beside what runs: KV is evicted.
    offline = [
        generate(prompt(d, 180) + prompt(100 + 10 * d + q, 5 + q), 6 + 5 * q, OFFLINE)
        for q in range(4)
        for d in range(DOCUMENTS)
    ]
    online = [generate(prompt(500 + i, 20 + 15 * i), 4 + i, ONLINE) for i in range(8)]
    left: list[Future[None]] = []
    with ThreadPoolExecutor(max_workers=len(offline) + len(online)) as clients:
        pooled = [clients.submit(answer_to, ranks, body) for body in offline]
        for i, body in enumerate(online):
            waited_for = pooled[3 * i]
            settle(waited_for.done)
            assert answer_to(ranks, body)["meta_info"]["completion_tokens"] == 4 + i
            left.append(clients.submit(leave, ranks, generate(prompt(700 + i, 40), 400, OFFLINE)))
        answers = [future.result(timeout=300) for future in pooled]
        for gone in left:
            gone.result(timeout=300)
    for body, answer in zip(offline, answers, strict=True):
        wanted = body["sampling_params"]["max_new_tokens"]
        assert answer["meta_info"]["completion_tokens"] == wanted
    seen = until_idle(ranks)
    assert seen["parallel"] == {"replica": 0, "replicas": 1, "ranks": NUM_RANKS}
    assert seen["counters"]["rows_released"] > 0
    assert seen["memory_tokens"]["free"] + seen["memory_tokens"]["cached"] == KV_TOKENS

    def written() -> list[list[str]]:
        return [rank_probe.batches_of(probe_folder, rank) for rank in range(NUM_RANKS)]

    assert settle(lambda: len({len(batches) for batches in written()}) == 1)
    first, *others = written()
    assert len(first) > 100
    assert all(batches == first for batches in others)


def test_preempted_requests_of_three_ranks_give_the_tokens_of_an_undisturbed_run(
    ranks: LiveServer,
) -> None:
    bodies = [generate(prompt(900 + i, 50 + 10 * i), 40, OFFLINE) for i in range(SLOTS)]
    undisturbed = [answer_to(ranks, body)["output_ids"] for body in bodies]
    until_idle(ranks)
    with ThreadPoolExecutor(max_workers=SLOTS) as clients:
        futures = [clients.submit(answer_to, ranks, body) for body in bodies]
        assert settle(lambda: status(ranks)["requests"]["offline_running"] == SLOTS)
        for i in range(2):
            answer_to(ranks, generate(prompt(950 + i, 60), 3, ONLINE))
        answers = [future.result() for future in futures]
    assert any(a["meta_info"]["num_retractions"] for a in answers)
    assert [a["output_ids"] for a in answers] == undisturbed


def test_every_replica_has_a_pool_and_a_status_of_its_own(
    start_server: ServerFactory, tmp_path: Path
) -> None:
    log = tmp_path / "decisions.jsonl"
    server = start_server(
        flags=[*SMALL, "--dp-size", "2", "--echo-decision-log", str(log)],
        environment={"OMP_NUM_THREADS": "1"},
    )
    bodies = [generate(prompt(i, 40), 6, ONLINE if i % 4 == 0 else OFFLINE) for i in range(16)]
    with ThreadPoolExecutor(max_workers=len(bodies)) as clients:
        answers = list(clients.map(lambda body: answer_to(server, body), bodies))
    assert all(a["meta_info"]["completion_tokens"] == 6 for a in answers)
    replicas: list[dict[str, Any]] = server.get("/echo/status").json()
    places = sorted(seen["parallel"]["replica"] for seen in replicas)
    assert places == [0, 1]
    assert all(seen["parallel"]["replicas"] == 2 for seen in replicas)
    finished = [seen["counters"].get("offline_finished", 0) for seen in replicas]
    assert sum(finished) == 12 and min(finished) > 0
    assert all(seen["memory_tokens"]["total"] == KV_TOKENS for seen in replicas)
    assert server.post("/echo/dump", {}).json() == {"written": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{log.name}.dp{i}" for i in (0, 1)]
