"""GET /echo/status, POST /echo/dump, echo:* metrics and the limit of the offline pool."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from echo_sglang.domain.plan import Reason
from echo_sglang.policy.decision_log import read_decisions
from tests.e2e.conftest import ServerFactory
from tests.e2e.http_kit import OFFLINE, ONLINE, generate, prompt, status, until, until_idle
from tests.e2e.live_server import START_TIMEOUT_S, LiveServer

pytestmark = pytest.mark.server

KV_TOKENS = 2048
SLOTS = 2
MAX_POOLED = 3

NONE = type(None)

STATUS_SCHEMA: dict[str, Any] = {
    "enabled": bool,
    "parallel": {"replica": int, "replicas": int, "ranks": int},
    "slo": {"ttft_ms": float, "tpot_ms": float},
    "attainment_last_minute": {"finished": int, "attained": int, "share": float},
    "requests": {
        "online_running": int,
        "online_waiting": int,
        "offline_running": int,
        "offline_pooled": int,
        "offline_parked": int,
    },
    "offline": {
        "work_tokens_per_s": (NONE, float),
        "least_laxity_s": (NONE, float),
        "late_requests": int,
        "most_preemptions": int,
        "deadlines": list,
        "num_jobs": int,
        "jobs": list,
    },
    "memory_tokens": {
        "total": int,
        "free": int,
        "cached": int,
        "locked": int,
        "locked_by_online": int,
        "locked_by_offline_or_shared": int,
        "reserved_for_online": int,
    },
    "step_time_model": {
        "trained": bool,
        "samples": int,
        "profile": NONE,
        "safe_mode": (NONE, str),
        "drift_ratio": (NONE, float),
        "median_abs_error": float,
        "largest_extend_tokens": int,
        "regimes": {
            "extend": {"samples": int, "p50_error": float, "p99_error": float, "coverage": float},
            "decode": {"samples": int, "signed_bias": float, "under_prediction_rate": float},
        },
    },
    "step_trace": NONE,
    "limits": {"chunk_tokens": int, "rows": int, "kv_tokens": int, "context_tokens": int},
    "steps": int,
    "reasons": dict,
    "counters": dict,
    "last_decisions": list,
}
"""Names and types after at least one online request finished and the model is trained."""


def assert_has_schema(value: Any, schema: Any, path: str = "status") -> None:
    if not isinstance(schema, dict):
        assert isinstance(value, schema), f"{path} is {value!r}"
        return
    assert set(schema) <= set(value), f"{path} lacks {set(schema) - set(value)}"
    for name, inner in schema.items():
        assert_has_schema(value[name], inner, f"{path}.{name}")


@pytest.fixture(scope="module")
def decision_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decisions") / "decisions.jsonl"


@pytest.fixture(scope="module")
def server(start_server: ServerFactory, decision_log: Path) -> LiveServer:
    return start_server(
        flags=[
            *("--max-running-requests", str(SLOTS)),
            *("--max-total-tokens", str(KV_TOKENS)),
            *("--context-length", "1024"),
            *("--chunked-prefill-size", "128"),
            *("--slo-ttft-ms", "600000", "--slo-tpot-ms", "600000"),
            *("--echo-max-pooled", str(MAX_POOLED)),
            *("--echo-decision-log", str(decision_log)),
            "--enable-metrics",
        ]
    )


@pytest.fixture(scope="module")
def served(server: LiveServer) -> LiveServer:
    """The server after some work of both classes, with a model that is trained."""
    for i in range(3):
        for tier in (ONLINE, OFFLINE):
            body = generate(prompt(10 * i + len(tier["service_tier"]), 60 + 20 * i), 12, tier)
            assert server.post("/generate", body).status_code == 200
    until_idle(server)
    return server


def test_the_status_says_what_it_promises(served: LiveServer) -> None:
    seen = status(served)
    assert_has_schema(seen, STATUS_SCHEMA)
    assert seen["enabled"] is True
    assert seen["step_time_model"]["trained"] is True
    assert seen["counters"]["offline_finished"] == 3
    assert seen["counters"]["offline_output_tokens"] == 3 * 12
    assert seen["counters"]["online_attained"] >= 3
    # An idle server looks around again and again, which is no step.
    assert 12 <= seen["steps"] == status(served)["steps"]
    assert set(seen["reasons"]) <= {reason.value for reason in Reason}
    steps = [decision["step"] for decision in seen["last_decisions"]]
    assert steps == sorted(steps) and len(steps) <= 20


def test_memory_adds_up_when_idle(served: LiveServer) -> None:
    memory = until_idle(served)["memory_tokens"]
    assert memory["total"] == KV_TOKENS
    assert memory["free"] + memory["cached"] == KV_TOKENS
    # Six prompts of 60, 80 and 100 tokens that share nothing, and 11 of 12 outputs each.
    assert memory["cached"] >= 2 * (60 + 80 + 100)


def test_a_dump_can_be_read_and_every_decision_replays(
    served: LiveServer, decision_log: Path
) -> None:
    response = served.post("/echo/dump", {})
    assert (response.status_code, response.json()["written"]) == (200, True)
    with decision_log.open(encoding="utf-8") as lines:
        settings, decisions = read_decisions(lines)
    assert settings.slo.ttft_slo_s == 600.0
    assert len(decisions) >= 20
    reasons = {decision.plan.reason for decision in decisions}
    assert {Reason.ONLINE_PREFILL, Reason.OFFLINE_PREFILL} <= reasons | {Reason.SAFE_MODE}
    for decision in decisions:
        assert decision.replays(settings), decision.snapshot.step


def test_prometheus_shows_echos_metrics(served: LiveServer) -> None:
    until_s = time.monotonic() + 60.0
    text = served.get("/metrics").text
    while "echo:step_time_error{" not in text and time.monotonic() < until_s:
        # told every 5 s, as long as iterations end
        assert served.post("/generate", generate(prompt(700, 40), 24, ONLINE)).status_code == 200
        text = served.get("/metrics").text
    samples = [line for line in text.splitlines() if line.startswith("echo:")]
    for name in (
        "echo:step_seconds_bucket",
        "echo:prefill_tokens_total",
        "echo:online_ttft_seconds_count",
        "echo:online_tpot_seconds_count",
        "echo:online_requests_total",
        "echo:events_total",
        "echo:step_time_error",
        "echo:step_time_coverage",
        "echo:step_time_safe_mode",
        "echo:offline_work_per_second",
        "echo:offline_jobs_waiting",
        "echo:offline_least_laxity_seconds",
        "echo:offline_late_requests",
    ):
        assert any(sample.startswith(name + "{") for sample in samples) or any(
            sample.startswith(name + " ") for sample in samples
        ), name
    finished = [s for s in samples if s.startswith("echo:events_total") and "offline_finished" in s]
    assert [float(sample.rsplit(" ", 1)[1]) for sample in finished] == [3.0]


def test_a_deadline_that_cannot_be_kept_is_said_while_the_work_still_waits(
    served: LiveServer,
) -> None:
    job = {"job": "nightly", "weight": 2.0, "deadline": time.time() + 3.0}
    running = [generate(prompt(300 + i, 40), 400, OFFLINE) for i in range(SLOTS)]
    with ThreadPoolExecutor(max_workers=SLOTS + 1) as clients:
        answers = [clients.submit(served.post, "/generate", body) for body in running]
        until(served, lambda s: s["requests"]["offline_running"] == SLOTS, "two offline rows")
        answers.append(
            clients.submit(
                served.post, "/generate", generate(prompt(310, 40), 400, OFFLINE, echo=job)
            )
        )
        late = until(served, lambda s: s["offline"]["late_requests"] == 1, "a late request")
        served.post("/abort_request", {"abort_all": True})
        assert all(answer.result() for answer in answers)
    (deadline,) = late["offline"]["deadlines"]
    assert deadline["due_in_s"] <= 3.0
    assert deadline["requests"] == 1
    assert not deadline["feasible"]
    (nightly,) = (one for one in late["offline"]["jobs"] if one["job"] == "nightly")
    assert (nightly["weight"], nightly["waiting"], nightly["running"]) == (2.0, 1, 0)
    after = until_idle(served)["offline"]
    assert after["deadlines"] == []
    assert {one["job"]: one["running"] for one in after["jobs"]} == {None: 0, "nightly": 0}


def test_no_queue_time_exceeds_what_the_server_has_been_up(served: LiveServer) -> None:
    """A request that waited in the pool must not be timed from the start of the machine."""
    lines = served.get("/metrics").text.splitlines()
    sums = [line for line in lines if line.startswith("sglang:queue_time_seconds_sum")]
    assert sums
    # The machine may be younger than the tests; the requests together waited for less.
    for line in sums:
        assert 0.0 <= float(line.rsplit(" ", 1)[1]) < START_TIMEOUT_S, line


def test_a_full_pool_answers_503_and_takes_requests_again_later(served: LiveServer) -> None:
    body = [generate(prompt(100 + i, 40), 400, OFFLINE) for i in range(SLOTS + MAX_POOLED)]
    with ThreadPoolExecutor(max_workers=len(body)) as clients:
        running = [clients.submit(served.post, "/generate", b) for b in body[:SLOTS]]
        until(served, lambda s: s["requests"]["offline_running"] == SLOTS, "two offline rows")
        pooled = [clients.submit(served.post, "/generate", b) for b in body[SLOTS:]]
        until(served, lambda s: s["requests"]["offline_pooled"] == MAX_POOLED, "a full pool")
        refused = served.post("/generate", generate(prompt(200, 40), 4, OFFLINE))
        assert refused.status_code == 503, refused.text
        assert "--echo-max-pooled" in refused.text
        streamed = served.stream("/generate", generate(prompt(201, 40), 4, OFFLINE))
        assert "--echo-max-pooled" in str(streamed)
        assert status(served)["requests"]["offline_pooled"] == MAX_POOLED
        online = served.post("/generate", generate(prompt(202, 40), 4, ONLINE))
        assert online.status_code == 200, online.text
        assert online.json()["meta_info"]["completion_tokens"] == 4
        served.post("/abort_request", {"abort_all": True})
        answers = [future.result() for future in (*running, *pooled)]
    for answer in answers:
        reason = answer.json().get("meta_info", {}).get("finish_reason") or answer.json()
        assert "abort" in str(reason).lower(), answer.text
    until_idle(served)
    again = served.post("/generate", generate(prompt(203, 40), 4, OFFLINE))
    assert again.status_code == 200
