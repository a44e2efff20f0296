"""What SGLang's other features do beside preemption, on a real server; the rows of
docs/features.md that say "works".

Each test first takes what an undisturbed server answers, then fills all slots with offline
requests, one of them with the feature, and lets online requests take slots.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import ServerFactory
from tests.e2e.http_kit import OFFLINE, ONLINE, generate, prompt, status, until, until_idle
from tests.e2e.live_server import LiveServer

pytestmark = pytest.mark.server

SLOTS = 3
KV_TOKENS = 2000
NUM_LAYERS = 4
NUM_NEW = 80


@pytest.fixture(scope="module")
def server(start_server: ServerFactory) -> LiveServer:
    return start_server(
        flags=[
            *("--dtype", "float32"),
            *("--json-model-override-args", json.dumps({"num_hidden_layers": NUM_LAYERS})),
            *("--context-length", "1024"),
            *("--max-running-requests", str(SLOTS)),
            *("--max-total-tokens", str(KV_TOKENS)),
            *("--chunked-prefill-size", "128"),
            *("--slo-ttft-ms", "600000", "--slo-tpot-ms", "600000"),
        ],
        environment={"OMP_NUM_THREADS": "1", "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1"},
    )


def answer_to(server: LiveServer, body: dict[str, Any]) -> Any:
    response = server.post("/generate", body)
    assert response.status_code == 200, response.text
    return response.json()


def disturbed(server: LiveServer, bodies: Sequence[dict[str, Any]]) -> list[Any]:
    """Answers to offline requests that fill all slots and meet online ones while they run."""
    until_idle(server)
    with ThreadPoolExecutor(max_workers=len(bodies)) as clients:
        futures = [clients.submit(answer_to, server, body) for body in bodies]
        until(server, lambda s: s["requests"]["offline_running"] == SLOTS, "all slots taken")
        for i in range(2):
            online = answer_to(server, generate(prompt(50 + i, 30), 3, ONLINE))
            assert online["meta_info"]["num_retractions"] == 0
        answers = [future.result() for future in futures]
    until_idle(server)
    return answers


def neighbours(count: int) -> list[dict[str, Any]]:
    return [generate(prompt(10 + i, 50), NUM_NEW, OFFLINE) for i in range(count)]


def preemptions(answers: Sequence[Any]) -> list[int]:
    return [answer["meta_info"]["num_retractions"] for answer in answers]


def test_a_request_with_a_grammar_is_kept_and_its_answer_fits(server: LiveServer) -> None:
    body = generate(prompt(2, 50), NUM_NEW, OFFLINE)
    body["sampling_params"] |= {"regex": "[0-9]{60}", "ignore_eos": False}
    undisturbed = answer_to(server, body)
    answers = disturbed(server, [body, *neighbours(2)])
    assert preemptions(answers)[0] == 0 and sum(preemptions(answers)) > 0
    assert answers[0]["text"] == undisturbed["text"]
    assert set(answers[0]["text"]) <= set("0123456789") and answers[0]["text"]


def test_logprobs_are_the_same_with_and_without_preemption_of_others(server: LiveServer) -> None:
    wanted = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2}
    body = generate(prompt(3, 50), NUM_NEW, OFFLINE, **wanted)
    undisturbed = answer_to(server, body)["meta_info"]
    assert server.post("/flush_cache", {}).status_code == 200
    answers = disturbed(server, [body, *neighbours(2)])
    assert preemptions(answers)[0] == 0 and sum(preemptions(answers)) > 0
    found = answers[0]["meta_info"]
    for side, count in (("input_token_logprobs", 50), ("output_token_logprobs", NUM_NEW)):
        assert len(found[side]) == len(undisturbed[side]) == count
        for (mine, token, _), (theirs, other, _) in zip(
            found[side], undisturbed[side], strict=True
        ):
            assert token == other
            # The first token of a prompt has none.
            assert mine == theirs or mine == pytest.approx(theirs, abs=1e-3)


def test_an_offline_turn_of_a_session_is_kept_and_finds_the_turn_before(
    server: LiveServer,
) -> None:
    opened = server.post("/open_session", {"capacity_of_str_len": 1000})
    assert opened.status_code == 200, opened.text
    session = opened.json()
    first = answer_to(
        server, generate(prompt(6, 50), 8, OFFLINE, session_params={"id": session, "rid": None})
    )
    turn = {"id": session, "rid": first["meta_info"]["id"]}
    second = generate(prompt(7, 20), NUM_NEW, OFFLINE, session_params=turn)
    answers = disturbed(server, [second, *neighbours(2)])
    assert preemptions(answers)[0] == 0 and sum(preemptions(answers)) > 0
    meta = answers[0]["meta_info"]
    assert meta["prompt_tokens"] == 50 + 8 + 20
    assert meta["cached_tokens"] >= 50
    assert server.post("/close_session", {"session_id": session}).status_code == 200


def test_parallel_samples_of_an_offline_request_all_come(server: LiveServer) -> None:
    body = generate(prompt(8, 50), 12, OFFLINE)
    body["sampling_params"] |= {"n": 5}
    answers = answer_to(server, body)
    assert [answer["meta_info"]["completion_tokens"] for answer in answers] == [12] * 5
    assert len({tuple(answer["output_ids"]) for answer in answers}) == 1
    assert status(server)["requests"]["offline_pooled"] == 0


def sequences(answer: Any) -> list[list[int]]:
    """The tokens of every beam, the best first."""
    return [beam["output_ids"] for beam in answer["meta_info"]["beam_results"]]


def test_a_beam_search_is_kept_and_gives_its_sequences(server: LiveServer) -> None:
    body = generate(prompt(4, 50), NUM_NEW, OFFLINE)
    body["sampling_params"] |= {"beam_width": 2, "n": 2}
    undisturbed = answer_to(server, body)
    until_idle(server)
    with ThreadPoolExecutor(max_workers=2) as clients:
        beam = clients.submit(answer_to, server, body)
        until(server, lambda s: s["requests"]["offline_running"] >= 1, "the beams run")
        other = clients.submit(answer_to, server, neighbours(1)[0])
        for i in range(2):
            answer_to(server, generate(prompt(60 + i, 30), 3, ONLINE))
        answer, _ = beam.result(), other.result()
    assert sequences(answer) == sequences(undisturbed)
    assert len(sequences(answer)) == 2
    assert preemptions([answer]) == [0]
    until_idle(server)


def test_beams_that_are_aborted_while_they_wait_leave_nothing(server: LiveServer) -> None:
    body = generate(prompt(5, 50), NUM_NEW, OFFLINE)
    body["sampling_params"] |= {"beam_width": 2, "n": 2}
    with ThreadPoolExecutor(max_workers=SLOTS + 1) as clients:
        running = [clients.submit(answer_to, server, b) for b in neighbours(SLOTS)]
        until(server, lambda s: s["requests"]["offline_running"] == SLOTS, "all slots taken")
        waiting = clients.submit(server.post, "/generate", body)
        until(server, lambda s: s["requests"]["offline_pooled"] >= 1, "the beams wait")
        server.post("/abort_request", {"abort_all": True})
        assert "abort" in waiting.result().text.lower()
        for future in running:
            future.result()
    memory = until_idle(server)["memory_tokens"]
    assert memory["free"] + memory["cached"] == KV_TOKENS
