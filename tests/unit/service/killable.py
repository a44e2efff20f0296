"""A server process to kill: the real runner on a real disk, with an engine that only waits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echo_sglang.service.files import Files
from echo_sglang.service.forecast import Speed
from echo_sglang.service.model import EngineAnswer, LineTag
from echo_sglang.service.runner import Runner, RunnerSettings
from echo_sglang.service.store import open_store


class WaitingEngine:
    """Answers every line after some milliseconds."""

    ready = True
    capacity = 8

    async def speed(self) -> Speed:
        return Speed()

    async def submit(self, endpoint: str, body: Mapping[str, Any], tag: LineTag) -> EngineAnswer:
        await asyncio.sleep(0.1)
        return EngineAnswer(status=200, body={"echo": body["prompt"]}, request_id="req_1")


def serve(folder: Path) -> None:
    """Run until killed."""
    logging.disable(logging.CRITICAL)
    store = open_store(folder)
    files = Files(store, folder, clock=time.time)
    settings = RunnerSettings(name="one", poll_s=0.02, blame_crashes=False)
    asyncio.run(_run(Runner(store, files, WaitingEngine(), settings, clock=time.time)))


async def _run(runner: Runner) -> None:
    await runner.run()
