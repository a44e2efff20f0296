"""Batches for experiments: input files, a client of the batch API, and a process's cost."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from echo_sglang.errors import EchoError
from eval.harness.corpus import read_passages

COMPLETIONS = "/v1/completions"
MODEL_NAME = "m"
FINAL = frozenset({"completed", "failed", "expired", "cancelled"})


class BatchRunError(EchoError):
    """A batch under test did not go as it should."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Completion requests that share no prefix; the same seed gives the same ones."""

    count: int
    prompt_words: int
    output_tokens: int
    seed: int

    def bodies(self) -> Iterator[dict[str, Any]]:
        """Request bodies, greedy and of fixed length."""
        words = _vocabulary()
        chance = random.Random(self.seed)
        for number in range(self.count):
            start = f"{chance.getrandbits(48):x} {number}"
            yield {
                "model": MODEL_NAME,
                "prompt": " ".join([start, *chance.choices(words, k=self.prompt_words)]),
                "max_tokens": self.output_tokens,
                "temperature": 0,
                "ignore_eos": True,
            }


def write_questions(questions: Questions, path: Path) -> None:
    """Write the input file of a batch of these requests."""
    with path.open("wb") as sink:
        for number, body in enumerate(questions.bodies()):
            sink.write(_line(number, body))


def write_lines(path: Path, *, count: int, line_bytes: int, seed: int) -> int:
    """Write an input file whose lines have about `line_bytes` bytes; returns its size."""
    text = " ".join(random.Random(seed).choices(_vocabulary(), k=200_000))
    chance = random.Random(seed)
    with path.open("wb") as sink:
        for number in range(count):
            body: dict[str, Any] = {"model": MODEL_NAME, "prompt": "", "max_tokens": 8}
            room = line_bytes - len(_line(number, body))
            start = chance.randrange(len(text) - room)
            sink.write(_line(number, body | {"prompt": text[start : start + room]}))
    return path.stat().st_size


class BatchClient:
    """The batch API of one server, as far as the experiments use it."""

    def __init__(self, base_url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(
            base_url=base_url, timeout=600.0, trust_env=False, transport=transport
        )

    def upload(self, path: Path) -> str:
        """The id of the uploaded file."""
        with path.open("rb") as source:
            answer = self._http.post(
                "/v1/files",
                data={"purpose": "batch"},
                files={"file": (path.name, source, "application/jsonl")},
            )
        return str(_checked(answer)["id"])

    def create(self, file_id: str) -> str:
        """The id of a new batch of this file."""
        wanted = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h"}
        return str(_checked(self._http.post("/v1/batches", json=wanted))["id"])

    def get(self, batch_id: str) -> dict[str, Any]:
        """The batch as it is now."""
        return _checked(self._http.get(f"/v1/batches/{batch_id}"))

    def cancel(self, batch_id: str) -> None:
        """Ask for its end."""
        _checked(self._http.post(f"/v1/batches/{batch_id}/cancel"))

    def wait(
        self,
        batch_id: str,
        until: Callable[[dict[str, Any]], bool],
        *,
        poll_s: float = 0.02,
        timeout_s: float = 1200.0,
    ) -> dict[str, Any]:
        """Poll until the batch is as wanted. Raises BatchRunError if it never is."""
        give_up_at = time.monotonic() + timeout_s
        while not until(batch := self.get(batch_id)):
            if batch["status"] in FINAL or time.monotonic() > give_up_at:
                raise BatchRunError(f"the batch did not become what was wanted of it: {batch}")
            time.sleep(poll_s)
        return batch


async def ask_directly(base_url: str, bodies: Sequence[dict[str, Any]], concurrency: int) -> int:
    """Send these requests as offline work, so many at a time; returns tokens put out.

    Raises BatchRunError for an answer that is not 200.
    """
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    waiting = iter(bodies)
    async with httpx.AsyncClient(base_url=base_url, timeout=None, limits=limits) as http:

        async def worker() -> int:
            tokens = 0
            for body in waiting:
                answer = _checked(
                    await http.post(COMPLETIONS, json={**body, "service_tier": "flex"})
                )
                tokens += int(answer["usage"]["completion_tokens"])
            return tokens

        return sum(await asyncio.gather(*(worker() for _ in range(concurrency))))


class ProcessCost:
    """What one process spends, from when this is made. Linux only."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")  # the peak begins anew
        self._rss_bytes = self._peak_bytes()
        self._cpu_s = self._spent_s()

    @property
    def cpu_s(self) -> float:
        """CPU seconds, user and system."""
        return self._spent_s() - self._cpu_s

    @property
    def extra_rss_bytes(self) -> int:
        """By how much the resident memory was at most larger than at the start."""
        return self._peak_bytes() - self._rss_bytes

    def _spent_s(self) -> float:
        times = psutil.Process(self._pid).cpu_times()
        return float(times.user + times.system)

    def _peak_bytes(self) -> int:
        status = Path(f"/proc/{self._pid}/status").read_text("ascii")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _line(number: int, body: dict[str, Any]) -> bytes:
    entry = {"custom_id": f"line-{number}", "method": "POST", "url": COMPLETIONS, "body": body}
    return json.dumps(entry).encode() + b"\n"


def _vocabulary() -> list[str]:
    texts = (passage.text for passage in read_passages(min_words=40))
    return sorted({word for text in texts for word in text.split() if word.isalpha()})


def _checked(answer: httpx.Response) -> dict[str, Any]:
    if answer.status_code != httpx.codes.OK:
        raise BatchRunError(f"{answer.request.url} answered {answer.status_code}: {answer.text}")
    found: dict[str, Any] = answer.json()
    return found
