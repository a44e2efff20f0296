"""The offline backend against a small HTTP server that answers as SGLang does, no model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("sglang")

import sglang as sgl

from echo_sglang.errors import ProgramError, ServerError
from echo_sglang.frontend import OfflineBackend, Progress, run_programs

pytestmark = pytest.mark.filterwarnings("ignore:Error in stream_executor")

META = {"prompt_tokens": 5, "completion_tokens": 2, "finish_reason": {"type": "length"}}
TOO_LONG = "The input (9 tokens) is longer than the model's context length (8 tokens)."


class FakeServer(ThreadingHTTPServer):
    """`bodies`: what /generate was sent. `answers`: (status, body) to give first, in order.

    `breaks_off`: answers end before the length they announced.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self.runs_echo = True
        self.breaks_off = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        if self.path == "/get_model_info":
            self.reply(200, {"model_path": "m"})
        else:
            self.reply(200 if self.server.runs_echo else 404, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        if self.server.answers:
            self.reply(*self.server.answers.pop(0))
        elif body.get("stream"):
            self.stream([{"text": "a", "meta_info": META}, {"text": "ab", "meta_info": META}])
        else:
            self.reply(200, {"text": "ab", "meta_info": META})

    def stream(self, events: list[dict[str, Any]]) -> None:
        lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
        self.write(200, "".join(lines).encode())

    def reply(self, status: int, body: dict[str, Any]) -> None:
        if "stream" in body:
            self.stream(body["stream"])
        else:
            self.write(status, json.dumps(body).encode())

    def write(self, status: int, content: bytes) -> None:
        self.send_response(status)
        unsent = 1 if self.server.breaks_off else 0
        self.send_header("Content-Length", str(len(content) + unsent))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def connect(server: FakeServer, **options: Any) -> OfflineBackend:
    clock = Clock()
    return OfflineBackend(server.url, clock=clock, sleep=clock.sleep, **options)


@sgl.function
def ask(s: Any, word: str) -> None:
    s += word + sgl.gen("answer", max_tokens=2)


@sgl.function
def count(s: Any) -> None:
    s += "One digit: " + sgl.gen("digit", regex="[0-9]", max_tokens=4)


@sgl.function
def fork_and_ask(s: Any) -> None:
    s += "start"
    s.sync()
    forks = s.fork(2)
    for fork in forks:
        fork += sgl.gen("answer", max_tokens=2)
    s["answers"] = [fork["answer"] for fork in forks]
    forks.join()


@sgl.function
def look(s: Any, path: str) -> None:
    s += sgl.image(path) + sgl.gen("answer")


def test_every_request_of_a_program_is_offline_and_carries_the_deadline(
    server: FakeServer,
) -> None:
    backend = connect(server, deadline=2e9)
    ask.run("Hi", backend=backend).sync()
    fork_and_ask.run(backend=backend).sync()
    list(ask.run("Hi", backend=backend, stream=True).text_iter())
    backend.cache_prefix("a long prefix")
    assert len(server.bodies) == 1 + 3 + 1 + 1
    for body in server.bodies:
        assert (body["service_tier"], body["echo"]) == ("flex", {"deadline": 2e9})


def test_a_regex_reaches_the_server_streamed_or_not(server: FakeServer) -> None:
    backend = connect(server)
    for stream in (False, True):
        state = count.run(backend=backend, stream=stream)
        "".join(state.text_iter("digit"))
    assert [body["sampling_params"]["regex"] for body in server.bodies] == ["[0-9]", "[0-9]"]


def test_a_server_without_echo_is_refused(server: FakeServer) -> None:
    server.runs_echo = False
    with pytest.raises(ServerError, match="without Echo"):
        connect(server)


def test_a_server_that_is_not_there_is_refused_after_the_patience(server: FakeServer) -> None:
    clock = Clock()
    with pytest.raises(ServerError, match="did not answer for 20 s"):
        OfflineBackend("http://127.0.0.1:9", patience_s=20, clock=clock, sleep=clock.sleep)
    assert 10 < clock.now_s <= 20


def test_a_request_is_sent_again_while_the_server_restarts(server: FakeServer) -> None:
    backend = connect(server)
    unavailable = (503, {"error": {"message": "starting"}})
    server.answers = [unavailable, unavailable]
    assert ask.run("Hi", backend=backend)["answer"] == "ab"
    assert len(server.bodies) == 3
    assert backend.counts == Progress(done=1, prompt_tokens=5, completion_tokens=2)


def test_a_refused_request_fails_its_program_alone_and_says_what_to_do(server: FakeServer) -> None:
    seen: list[Progress] = []
    backend = connect(server, progress=seen.append)
    server.answers = [(400, {"error": {"message": TOO_LONG}})]
    jobs = [{"word": str(index)} for index in range(3)]
    outcomes = run_programs(ask, jobs, backend, at_once=1)
    assert isinstance(outcomes[0].error, ProgramError)
    assert TOO_LONG in str(outcomes[0].error) and "--context-length" in str(outcomes[0].error)
    with pytest.raises(ProgramError):
        outcomes[0]["answer"]
    assert [outcome["answer"] for outcome in outcomes[1:]] == ["ab", "ab"]
    assert (seen[-1].done, seen[-1].failed, seen[-1].running) == (2, 1, 0)


def test_an_error_inside_a_stream_is_raised_with_its_message(server: FakeServer) -> None:
    backend = connect(server)
    server.answers = [(200, {"stream": [{"error": {"message": TOO_LONG, "code": 400}}]})]
    state = ask.run("Hi", backend=backend, stream=True)
    list(state.text_iter())
    state.stream_executor.worker.join()
    assert TOO_LONG in str(state.error())


def test_a_stream_that_has_not_begun_is_asked_for_again(server: FakeServer) -> None:
    backend = connect(server)
    server.answers = [(503, {"error": {"message": "starting"}})]
    state = ask.run("Hi", backend=backend, stream=True)
    assert "".join(state.text_iter("answer")) == "ab"
    assert len(server.bodies) == 2


def test_a_stream_that_breaks_off_is_an_error(server: FakeServer) -> None:
    backend = connect(server)
    server.breaks_off = True
    state = ask.run("Hi", backend=backend, stream=True)
    list(state.text_iter())
    state.stream_executor.worker.join()
    assert isinstance(state.error(), ServerError) and "broke off" in str(state.error())


def test_a_stream_that_was_aborted_is_an_error(server: FakeServer) -> None:
    backend = connect(server)
    reason = {"type": "abort", "message": "shutting down", "status_code": 503}
    event = {"text": "a", "meta_info": {**META, "finish_reason": reason}}
    server.answers = [(200, {"stream": [event]})]
    state = ask.run("Hi", backend=backend, stream=True)
    list(state.text_iter())
    state.stream_executor.worker.join()
    assert "shutting down" in str(state.error())


def test_images_are_refused_before_anything_is_sent(server: FakeServer, tmp_path: Any) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"\x89PNG")
    outcome = run_programs(look, [{"path": str(path)}], connect(server))[0]
    assert isinstance(outcome.error, ProgramError) and "images" in str(outcome.error)
    assert server.bodies == []


def test_a_program_that_reads_what_a_failed_fork_should_have_set_fails_with_the_cause(
    server: FakeServer,
) -> None:
    backend = connect(server)
    server.answers = [(200, {"text": "", "meta_info": META}), (400, {"error": "too bad"})]
    outcome = run_programs(fork_and_ask, [{}], backend)[0]
    assert isinstance(outcome.error, ProgramError) and "too bad" in str(outcome.error)


def test_no_programs_are_no_outcomes(server: FakeServer) -> None:
    assert run_programs(ask, [], connect(server)) == []
