"""A real server's step trace accounts for all it computed, and its profile is held to it."""

from __future__ import annotations

import json
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from echo_sglang.adapter.forward_pass import ForwardPassRecorder
from echo_sglang.cli.main import app
from echo_sglang.cli.sweep import Limits
from echo_sglang.cli.trace_files import load_trace
from echo_sglang.domain.step_record import StepMode, StepRecord
from echo_sglang.estimate.profile import Profile
from echo_sglang.estimate.trace_check import TraceCheck, check_trace
from echo_sglang.platform.bf16 import multiplies_bf16
from tests.e2e.conftest import ServerFactory
from tests.e2e.http_kit import OFFLINE, ONLINE, generate, prompt, status, until, until_idle
from tests.e2e.live_server import LiveServer

pytestmark = pytest.mark.server

KV_TOKENS = 4096
FLAGS = (
    *("--max-total-tokens", str(KV_TOKENS)),
    *("--max-running-requests", "8"),
    *("--context-length", "2048"),
    *("--chunked-prefill-size", "256"),
    *("--slo-ttft-ms", "600000", "--slo-tpot-ms", "600000"),
)
HEARTBEAT_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Run:
    """What a server was asked, what it answered, and what the two witnesses tell of it."""

    server: LiveServer
    trace: Path
    answers: list[tuple[dict[str, str], dict[str, Any]]]
    before: dict[str, Any]
    after: dict[str, Any]
    check: TraceCheck


def written(server: LiveServer) -> dict[str, Any]:
    """The status once everything recorded is in the file."""
    until_idle(server)
    return until(
        server,
        lambda s: s["step_trace"]["rows_written"] == s["step_trace"]["rows_recorded"],
        "a trace that is written to its end",
    )


def ask(
    server: LiveServer, number: int, tier: dict[str, str]
) -> tuple[dict[str, str], dict[str, Any]]:
    tokens = prompt(300 + number, 30 + 97 * number % 700)
    response = server.post("/generate", generate(tokens, 3 + number % 7, tier))
    assert response.status_code == 200, response.text
    return tier, response.json()["meta_info"]


@pytest.fixture(scope="module")
def run(start_server: ServerFactory, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("trace")
    trace, ipc_name = folder / "trace.jsonl", f"ipc://{folder}/fpm"
    server = start_server(
        flags=[
            *FLAGS,
            *("--echo-trace", str(trace)),
            *("--enable-forward-pass-metrics", "--forward-pass-metrics-ipc-name", ipc_name),
            "--enable-metrics",
        ]
    )
    before = written(server)
    with ForwardPassRecorder(ipc_name) as recorder:
        assert recorder.wait_for_first(HEARTBEAT_TIMEOUT_S), "no heartbeat came"
        with ThreadPoolExecutor(max_workers=6) as clients:
            # One class after the other: nothing gives way, so no token is computed twice.
            answers = list(clients.map(lambda number: ask(server, number, ONLINE), range(14)))
            answers += clients.map(lambda number: ask(server, number, OFFLINE), range(14, 24))
        after = written(server)
    return Run(
        server,
        trace,
        answers,
        before,
        after,
        check_trace(load_trace(trace).records, recorder.passes),
    )


@pytest.fixture(scope="module")
def records(run: Run) -> list[StepRecord]:
    """The iterations of the requests: those after what the server does at its start."""
    begin, end = (seen["step_trace"]["rows_recorded"] for seen in (run.before, run.after))
    return list(load_trace(run.trace).records)[begin:end]


def test_every_prompt_token_computed_is_in_the_trace(run: Run, records: list[StepRecord]) -> None:
    assert sum(one.released_rows for one in records) == 0
    for tier, tokens in (
        (ONLINE, sum(one.online_tokens for one in records)),
        (OFFLINE, sum(one.offline_tokens for one in records)),
    ):
        answers = [meta for asked, meta in run.answers if asked == tier]
        computed = sum(meta["prompt_tokens"] - meta["cached_tokens"] for meta in answers)
        assert tokens == computed > 0, tier


def test_every_decoded_token_is_in_the_trace(run: Run, records: list[StepRecord]) -> None:
    for tier, rows in (
        (ONLINE, sum(one.online_rows for one in records)),
        (OFFLINE, sum(one.offline_rows for one in records)),
    ):
        answers = [meta for asked, meta in run.answers if asked == tier]
        # The first token of an answer comes of its prompt, every other one of a decode row.
        assert rows == sum(meta["completion_tokens"] - 1 for meta in answers) > 0, tier


def test_what_was_computed_is_cached_or_was_evicted(run: Run) -> None:
    records = load_trace(run.trace).records
    computed = sum(one.sums.tokens + one.decode_rows for one in records)
    evicted = sum(one.evicted_tokens for one in records)
    assert evicted > 0
    assert computed - evicted == run.after["memory_tokens"]["cached"]


def test_iterations_follow_each_other_and_their_times_fit(
    run: Run, records: list[StepRecord]
) -> None:
    assert run.after["steps"] - run.before["steps"] == len(records)
    iterations = [one.iteration for one in records]
    assert iterations == list(range(iterations[0], iterations[0] + len(iterations)))
    assert {one.mode for one in records} >= {StepMode.EXTEND, StepMode.DECODE, StepMode.MIXED}
    for earlier, one in pairwise(records):
        assert 0 < one.device_s <= one.step_s
        assert 0 <= one.host_s <= one.step_s
        assert one.ended_s - one.step_s >= earlier.ended_s - 1e-5


def test_sglangs_own_metrics_tell_the_same(run: Run, records: list[StepRecord]) -> None:
    counts = {name: count for name, count in run.check.counts.items() if name != "device_s"}
    assert counts == {}, run.check.shown
    assert run.check.compared == len(records)
    assert (run.check.only_trace, run.check.only_forward_pass) == (0, 0)
    # Both clocks span the same forward call; ours a little more of what is around it.
    assert run.check.device_time_ratio == pytest.approx(1.0, abs=0.2)


def test_the_header_says_which_server_it_was(run: Run) -> None:
    header = load_trace(run.trace).header
    assert "attention_backend=echo_cpu" in header.identity["flags"]
    as_the_model = multiplies_bf16(torch.backends.cpu.get_cpu_capability(), platform.machine())
    assert header.identity["dtype"] == ("bfloat16" if as_the_model else "float32")
    assert "cores" in header.identity["hardware"]
    assert header.limits["kv_tokens"] == KV_TOKENS
    assert header.limits["chunk_tokens"] == 256
    assert header.limits == run.after["limits"]


def command(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*(str(argument) for argument in arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def swept(run: Run) -> dict[str, Any]:
    """What a sweep of the corners says of itself; ends the server, whose polling would slow the
    ones to come."""
    said = command("profile", f"http://127.0.0.1:{run.server.port}", "--seconds", "0")
    assert said["iterations"] > 60 and said["dropped"] == 0
    written(run.server)
    run.server.stop()
    return said


@pytest.fixture(scope="module")
def profile(run: Run, swept: dict[str, Any]) -> Path:
    """A profile of the server's own trace, with the sweep in it."""
    path = run.trace.with_name("profile.json")
    trained = command("train", run.trace, "-o", path)
    assert set(trained["regimes"]) == {"extend", "decode", "mixed", "overall"}
    return path


def test_a_sweep_reaches_the_largest_of_everything(run: Run, swept: dict[str, Any]) -> None:
    records = list(load_trace(run.trace).records)[run.after["step_trace"]["rows_recorded"] :]
    # How far a sweep climbs is a matter of the machine's speed; it has to be where it says.
    assert max(one.decode_rows for one in records) == swept["rows"]
    assert swept["rows"] <= swept["limits"]["rows"] == 8
    chunk = max(chunk for one in records for chunk, _ in one.extends or ())
    assert swept["chunk_tokens"] <= chunk <= swept["limits"]["chunk_tokens"] == 256
    reached = {name: swept[name] for name in ("chunk_tokens", "kv_tokens")}
    stem_tokens = Limits.of(swept["limits"] | reached).stem_tokens
    longest = max(prefix for one in records for _, prefix in one.extends or ())
    assert longest >= stem_tokens
    assert min(chunk for one in records for chunk, _ in one.extends or ()) == 1
    read = max(one.decode_kv_tokens for one in records)
    assert read >= swept["long_rows"] * stem_tokens > 0


def test_a_server_takes_the_profile_of_its_own_trace(
    start_server: ServerFactory, profile: Path
) -> None:
    server = start_server(flags=[*FLAGS, "--echo-profile", str(profile)])
    assert status(server)["step_time_model"]["trained"] is True
    assert status(server)["step_time_model"]["profile"] == "matched"
    server.stop()


def test_a_profile_of_other_hardware_is_refused_by_what_differs(
    start_server: ServerFactory, profile: Path
) -> None:
    own = Profile.from_json(profile.read_text())
    other = profile.with_name("other.json")
    identity = replace(own.identity, hardware="H100 80GB")
    other.write_text(replace(own, identity=identity).to_json())
    with pytest.raises(RuntimeError, match=r"H100 80GB[\s\S]*--echo-profile-force"):
        start_server(flags=[*FLAGS, "--echo-profile", str(other)])
