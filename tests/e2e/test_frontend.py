"""SGLang's frontend programs and the examples as offline work on a real server and model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sglang as sgl

from echo_sglang.errors import ProgramError, ServerError
from echo_sglang.frontend import OfflineBackend, Progress, run_programs
from tests.e2e.conftest import SMALL_SERVER_FLAGS, ServerFactory
from tests.e2e.http_kit import status
from tests.e2e.live_server import LiveServer

pytestmark = [
    pytest.mark.server,
    pytest.mark.filterwarnings("ignore:Error in stream_executor"),
]

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAT_ML = "chatml"


@pytest.fixture(scope="module")
def server(start_server: ServerFactory) -> LiveServer:
    return start_server(flags=SMALL_SERVER_FLAGS)


@pytest.fixture
def backend(server: LiveServer) -> OfflineBackend:
    return connect(server)


def connect(server: LiveServer, **options: Any) -> OfflineBackend:
    url = f"http://127.0.0.1:{server.port}"
    return OfflineBackend(url, chat_template_name=CHAT_ML, patience_s=5, **options)


@sgl.function
def tell(s: Any, topic: str) -> None:
    s += sgl.user(f"Tell me about {topic}.")
    s += sgl.assistant(sgl.gen("answer", max_tokens=8, temperature=0))


@sgl.function
def choose(s: Any) -> None:
    s += "The sky is " + sgl.select("colour", choices=["blue", "xqzzv kjw"])
    s += ". One digit: " + sgl.gen("digit", regex="[0-9]", max_tokens=4, temperature=0)


@sgl.function
def compare(s: Any) -> None:
    s += "A list of fruits: apple,"
    s.sync()
    forks = s.fork(3)
    for fork in forks:
        fork += sgl.gen("more", max_tokens=4, temperature=0)
    s["more"] = [fork["more"] for fork in forks]
    s["cached"] = [fork.get_meta_info("more")["cached_tokens"] for fork in forks]
    forks.join()


def test_a_batch_of_programs_runs_as_offline_work(server: LiveServer) -> None:
    seen: list[Progress] = []
    backend = connect(server, progress=seen.append)
    online_before = status(server)["attainment_last_minute"]["finished"]
    outcomes = run_programs(tell, [{"topic": topic} for topic in ("a", "b", "c", "d")], backend)
    assert all(outcome["answer"] for outcome in outcomes)
    tiers = {outcome.state.get_meta_info("answer")["service_tier"] for outcome in outcomes}
    assert tiers == {"flex"}
    assert status(server)["attainment_last_minute"]["finished"] <= online_before
    assert (seen[-1].running, seen[-1].done, seen[-1].failed) == (0, 4, 0)
    assert 4 <= seen[-1].completion_tokens <= 32


def test_sglang_s_own_run_batch_takes_the_backend(backend: OfflineBackend) -> None:
    states = tell.run_batch([{"topic": "x"}, {"topic": "y"}], backend=backend)
    assert all(state["answer"] for state in states)


def test_select_takes_one_of_the_choices_and_regex_holds(backend: OfflineBackend) -> None:
    state = choose.run(backend=backend)
    assert state["colour"] == "blue"
    assert state["digit"] in list("0123456789")


def test_forks_share_a_prefix_that_is_computed_once(backend: OfflineBackend) -> None:
    state = compare.run(backend=backend)
    assert len(state["more"]) == 3 and all(state["more"])
    assert min(state["cached"]) > 0


def test_a_stream_comes_in_parts_and_adds_up(backend: OfflineBackend) -> None:
    state = tell.run("z", backend=backend, stream=True)
    parts = list(state.text_iter("answer"))
    assert len([part for part in parts if part]) > 1
    assert "".join(parts) == state["answer"]


def test_a_deadline_in_the_past_is_refused_by_name(server: LiveServer) -> None:
    outcome = run_programs(tell, [{"topic": "a"}], connect(server, deadline=1.0))[0]
    assert isinstance(outcome.error, ProgramError) and "deadline" in str(outcome.error)


def test_a_prompt_beyond_the_context_is_an_error_that_says_so(backend: OfflineBackend) -> None:
    outcomes = run_programs(tell, [{"topic": "a " * 5000}, {"topic": "b"}], backend)
    assert isinstance(outcomes[0].error, ProgramError)
    assert "--context-length" in str(outcomes[0].error)
    assert outcomes[1]["answer"]


def test_a_server_that_is_not_there_is_an_error_that_says_what_to_start() -> None:
    with pytest.raises(ServerError, match="echo-sglang serve"):
        OfflineBackend("http://127.0.0.1:9", patience_s=0)


def run_example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_examples_run(server: LiveServer, tmp_path: Path) -> None:
    common = ["--url", f"http://127.0.0.1:{server.port}", "--max-tokens", "8"]
    described = tmp_path / "described.csv"
    asked = run_example("document_qa.py", str(EXAMPLES / "documents"), *common)
    summed = run_example(
        "summarize_csv.py", str(EXAMPLES / "cities.csv"), "-o", str(described), *common
    )
    judged = run_example("judge.py", str(EXAMPLES / "answers.jsonl"), *common)
    for ran in (asked, summed, judged):
        assert ran.returncode == 0, ran.stderr
    answers = [json.loads(line) for line in asked.stdout.splitlines() if line.startswith("{")]
    assert [len(each["answers"]) for each in answers] == [2, 2]
    assert described.read_text().splitlines()[0].endswith("summary,error")
    assert "3 of 3 rows described" in summed.stderr
    verdicts = [json.loads(line) for line in judged.stdout.splitlines() if line.startswith("{")]
    assert {each["verdict"] for each in verdicts} <= {"correct", "wrong"}
    assert all(each["grade"] in list("12345") for each in verdicts)
    assert "of 3 judged answers are correct" in judged.stderr


@pytest.mark.parametrize("name", ["document_qa.py", "summarize_csv.py", "judge.py"])
def test_every_example_has_help(name: str) -> None:
    ran = run_example(name, "--help")
    assert ran.returncode == 0 and "--url" in ran.stdout


def test_an_example_without_a_file_says_so_with_exit_code_2(tmp_path: Path) -> None:
    ran = run_example("judge.py", str(tmp_path / "absent.jsonl"))
    assert ran.returncode == 2
    assert "absent.jsonl cannot be read" in ran.stderr
