"""Emulated runs in processes of their own, several at a time, forked from one that is warm."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from echo_sglang.sim.environment import prepare_environment
from echo_sglang.sim.errors import EmulationError
from echo_sglang.sim.run import execute
from echo_sglang.sim.spec import RunSpec

LOG_TAIL_LINES = 30

Given = TypeVar("Given")
Result = TypeVar("Result")


def execute_all(specs: Sequence[RunSpec], *, jobs: int = 1) -> Iterator[dict[str, Any]]:
    """What `execute` returns for each of `specs`, in order, as soon as it is there.

    SGLang's state is global, so every run gets a process. Raises EmulationError with the end
    of a run's output at the first that fails.
    """
    yield from run_apart(_execute, [spec.to_json() for spec in specs], jobs=jobs)


def run_apart(
    function: Callable[[Given], Result], arguments: Sequence[Given], *, jobs: int = 1
) -> Iterator[Result]:
    """`function` of each of `arguments`, every call in a process of its own; as `execute_all`.

    function: of a module, so that the process finds it; it runs one emulated server.
    """
    if not arguments:
        return
    prepare_environment()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["echo_sglang.sim.preload"])
    with ProcessPoolExecutor(
        max_workers=max(jobs, 1), mp_context=context, max_tasks_per_child=1
    ) as pool:
        waiting = [pool.submit(_guarded, function, argument) for argument in arguments]
        try:
            for future in waiting:
                result, failure = future.result()
                if failure is not None:
                    raise EmulationError(f"an emulated run failed:\n{failure}")
                yield result
        except BrokenProcessPool as error:
            raise EmulationError(
                "the process of an emulated run died without a word; is there enough memory?"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _execute(spec: dict[str, Any]) -> dict[str, Any]:
    return execute(RunSpec.from_json(spec))


def _end_with_parent() -> None:
    """Nobody waits any more for a run whose caller was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _guarded(function: Callable[[Any], Any], argument: Any) -> tuple[Any, str | None]:
    """In the child: SGLang's many lines go to a file that only a failure shows."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            return function(argument), None
        except BaseException:
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
            return None, "\n".join([*lines, traceback.format_exc()])
