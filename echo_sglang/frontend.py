"""SGLang frontend programs as offline work.

    import sglang as sgl
    from echo_sglang.frontend import OfflineBackend, run_programs

    @sgl.function
    def ask(s, question):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("answer", max_tokens=64))

    backend = OfflineBackend("http://127.0.0.1:30000", chat_template_name="chatml")
    outcomes = run_programs(ask, [{"question": q} for q in questions], backend)

Every request such a program makes carries service tier "flex", so it fills what online
requests leave idle. `ask.run(...)` and `ask.run_batch(...)` take the backend as any other.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import requests
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint
from sglang.lang.choices import ChoicesDecision, ChoicesSamplingMethod
from sglang.lang.interpreter import ProgramState, StreamExecutor
from sglang.lang.ir import SglFunction, SglSamplingParams
from sglang.utils import http_request

from echo_sglang.domain.tag import RequestTag, ServiceClass
from echo_sglang.errors import ProgramError, ServerError

DEFAULT_PATIENCE_S = 600.0
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
DEFAULT_PROGRAMS_AT_ONCE = 64

OFFLINE_TIER = RequestTag(service_class=ServiceClass.OFFLINE).service_tier

T = TypeVar("T")

_FAILURES: ContextVar[list[BaseException] | None] = ContextVar("failures", default=None)
"""The failed requests of the program that runs in this context, if anybody wants to know."""

_UNREACHABLE = (
    urllib.error.URLError,
    http.client.HTTPException,
    requests.ConnectionError,
    ConnectionError,
)


class _Unavailable(Exception):
    """The server is there but takes nothing now: starting, draining, or its pool is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a backend's requests came to so far. Tokens are those of finished `gen` calls."""

    running: int = 0
    done: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class OfflineBackend(RuntimeEndpoint):
    """SGLang's backend for a running server, its requests tagged offline.

    base_url: of a server started with Echo.
    deadline: Unix seconds by which the answers are wanted; None for whenever there is room.
    patience_s: how long a request is sent again while the server is unreachable or answers 503
    (restarting, draining, pool full). A stream that has begun is not sent again.
    progress: called with a `Progress` after each change, from the threads of the programs, one
    call at a time.

    Raises ServerError if the server cannot be reached or does not run Echo. What the server
    refuses fails the program with ProgramError: see `run_programs`, or `state.error()`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: str | None = None,
        chat_template_name: str | None = None,
        *,
        deadline: float | None = None,
        patience_s: float = DEFAULT_PATIENCE_S,
        progress: Callable[[Progress], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.deadline = deadline
        self.patience_s = patience_s
        self.progress = progress
        self.counts = Progress()
        self._counting = threading.Lock()
        self._clock, self._sleep = clock, sleep
        base_url = base_url.rstrip("/")
        connect = super().__init__
        self._patiently(lambda: connect(base_url, api_key, verify, chat_template_name))
        self._refuse_stock()

    def generate(
        self, s: StreamExecutor, sampling_params: SglSamplingParams
    ) -> tuple[Any, dict[str, Any]]:
        """As RuntimeEndpoint: (text, meta info)."""
        stock = super().generate
        with self._counted() as usage:
            text, meta = self._patiently(lambda: stock(s, replace(sampling_params)))
            usage.append(meta)
            return text, meta

    def generate_stream(
        self, s: StreamExecutor, sampling_params: SglSamplingParams
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """As RuntimeEndpoint, but an error or an abort inside the stream is raised."""
        stock = super().generate_stream

        def begin() -> Iterator[tuple[str, dict[str, Any]]]:
            parts = stock(s, replace(sampling_params))
            first = next(parts, None)
            return chain([] if first is None else [first], parts)

        with self._counted() as usage:
            meta: dict[str, Any] = {}
            try:
                for text, meta in self._patiently(begin):
                    reason = meta.get("finish_reason") or {}
                    if reason.get("type") == "abort":
                        raise ServerError(f"the stream was cut short: {reason.get('message')}")
                    yield text, meta
            except requests.RequestException as error:
                raise ServerError(f"the stream broke off: {error}") from error
            usage.append(meta)

    def select(
        self,
        s: StreamExecutor,
        choices: list[str],
        temperature: float,
        choices_method: ChoicesSamplingMethod,
    ) -> ChoicesDecision:
        """As RuntimeEndpoint; the tokens it reads are not counted."""
        stock = super().select
        with self._counted():
            return self._patiently(lambda: stock(s, choices, temperature, choices_method))

    def cache_prefix(self, prefix_str: str) -> None:
        """As RuntimeEndpoint, tagged: it would be online otherwise."""
        data = {"text": prefix_str, "sampling_params": {"max_new_tokens": 0}}
        self._patiently(lambda: self._generate_http_request(None, data))

    def commit_lazy_operations(self, s: StreamExecutor) -> None:
        """As RuntimeEndpoint: what a fork shares is computed once."""
        stock = super().commit_lazy_operations
        with self._counted():
            self._patiently(lambda: stock(s))

    def _add_images(self, s: StreamExecutor | None, data: dict[str, Any]) -> None:
        """SGLang calls it on the body of each request before it is sent: the place for a tag."""
        if s is not None and s.images_:
            raise ProgramError(
                "images and videos are not taken by an offline program; send such requests to "
                f"/v1/chat/completions with service_tier {OFFLINE_TIER!r}"
            )
        data["service_tier"] = OFFLINE_TIER
        if self.deadline is not None:
            data["echo"] = {"deadline": self.deadline}

    def _assert_success(self, res: Any) -> None:
        """SGLang calls it on each response: errors in words, and those inside streams too."""
        if res.status_code == 200:
            if isinstance(res, requests.Response):
                res.iter_lines = _without_errors(res.iter_lines)  # type: ignore[method-assign]
            return
        message = _message_of(res.text)
        if res.status_code == 503:
            raise _Unavailable(message)
        raise program_error(res.status_code, message)

    def _refuse_stock(self) -> None:
        status = self._patiently(
            lambda: http_request(
                f"{self.base_url}/echo/status", api_key=self.api_key, verify=self.verify
            )
        )
        if status.status_code == 404:
            raise ServerError(
                f"{self.base_url} runs SGLang without Echo, which would serve these requests as "
                "online ones; start it with python -m echo_sglang.launch_server (without "
                "--echo-off), or use sglang.RuntimeEndpoint"
            )
        if status.status_code != 503:
            self._assert_success(status)

    def _patiently(self, call: Callable[[], T]) -> T:
        give_up_s = self._clock() + self.patience_s
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return call()
            except (_Unavailable, *_UNREACHABLE) as error:
                if self._clock() + wait_s > give_up_s:
                    raise ServerError(
                        f"the server did not answer for {self.patience_s:g} s, the last time: "
                        f"{error}; is it running there? Start it with echo-sglang serve, or wait "
                        "longer (patience_s)"
                    ) from error
            self._sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    @contextmanager
    def _counted(self) -> Iterator[list[dict[str, Any]]]:
        usage: list[dict[str, Any]] = []
        self._count(running=1)
        try:
            yield usage
        except BaseException as error:
            self._count(running=-1, failed=1)
            if (failures := _FAILURES.get()) is not None:
                failures.append(error)
            raise
        self._count(
            running=-1,
            done=1,
            prompt_tokens=sum(_tokens(meta, "prompt_tokens") for meta in usage),
            completion_tokens=sum(_tokens(meta, "completion_tokens") for meta in usage),
        )

    def _count(self, **more: int) -> None:
        with self._counting:
            old = self.counts
            self.counts = replace(old, **{key: getattr(old, key) + n for key, n in more.items()})
            if self.progress is not None:
                self.progress(self.counts)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one program: its state, or the error that ended it. Exactly one is set."""

    state: ProgramState | None
    error: BaseException | None

    def __getitem__(self, name: str) -> Any:
        """A variable of the program. Raises its error if it failed."""
        if self.error is not None:
            raise self.error
        return self.state[name]


def run_programs(
    program: SglFunction,
    arguments: Sequence[Mapping[str, Any]],
    backend: OfflineBackend,
    *,
    at_once: int = DEFAULT_PROGRAMS_AT_ONCE,
    finished: Callable[[Outcome], None] | None = None,
    **sampling: Any,
) -> list[Outcome]:
    """Run a program once per mapping of arguments; one outcome each, in their order.

    SGLang's own `run_batch` loses all results when one program raises; here the others go on.
    at_once: programs in flight; the server sees that far ahead for shared prefixes.
    finished: called as each program ends, from its thread.
    sampling: what `SglFunction.run` takes, such as temperature or max_new_tokens.
    """

    def run(given: Mapping[str, Any]) -> Outcome:
        outcome = _outcome_of(program, given, backend, sampling)
        if finished is not None:
            finished(outcome)
        return outcome

    if not arguments:
        return []
    with ThreadPoolExecutor(min(at_once, len(arguments))) as threads:
        return list(threads.map(run, arguments))


def _outcome_of(
    program: SglFunction,
    given: Mapping[str, Any],
    backend: OfflineBackend,
    sampling: Mapping[str, Any],
) -> Outcome:
    # Executors of the program and of its forks run in copies of this context.
    failures: list[BaseException] = []
    before = _FAILURES.set(failures)
    try:
        state = program.run(**given, backend=backend, **sampling)
        state.stream_executor.worker.join()
    except Exception as error:
        # A variable that a failed request should have set is a KeyError that says nothing.
        return Outcome(None, failures[0] if failures else error)
    finally:
        _FAILURES.reset(before)
    error = failures[0] if failures else state.stream_executor.error_
    return Outcome(None, error) if error is not None else Outcome(state, None)


@contextmanager
def shown_progress(total: int, what: str = "programs") -> Iterator[Callable[[Outcome], None]]:
    """A bar on the terminal; give what it yields to `run_programs` as `finished`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[failed]} failed"),
    )
    with RichProgress(*columns) as bar:
        task = bar.add_task(what, total=total, failed=0)
        failed = 0
        counting = threading.Lock()

        def finished(outcome: Outcome) -> None:
            nonlocal failed
            with counting:
                failed += outcome.error is not None
                bar.update(task, advance=1, failed=failed)

        yield finished


def program_error(status: int, message: str) -> ProgramError:
    """The error of a refused request, with what to do where that is known."""
    hint = ""
    if "context length" in message or "maximum allowed length" in message:
        hint = "; shorten or split the text, or start the server with a larger --context-length"
    elif status in (401, 403):
        hint = "; give the backend the server's api_key"
    return ProgramError(f"the server answered {status}: {message}{hint}")


def _without_errors(lines: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
    def checked(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        for line in lines(*args, **kwargs):
            if line.startswith(b'data: {"error"'):
                error = json.loads(line.removeprefix(b"data:"))["error"]
                raise program_error(error.get("code", 400), error["message"])
            yield line

    return checked


def _message_of(text: str) -> str:
    try:
        body = json.loads(text)
        error = body.get("error", body)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return text[:500]


def _tokens(meta: Any, name: str) -> int:
    several = meta if isinstance(meta, list) else [meta]
    return sum(int(each.get(name, 0)) for each in several)
