"""What is asked of a server: requests with arrival times, prompts and true answer lengths.

Prompts are recipes: a sequence of segments, each a seed and a length. Two prompts that start
with the same segments start with the same tokens, so shared documents, chats and system
prompts become real shared prefixes at 16 bytes instead of thousands.
"""

from __future__ import annotations

import functools
import hashlib
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from echo_sglang.domain.tag import ServiceClass
from echo_sglang.errors import WorkloadError
from echo_sglang.sim.answers import FIRST_TOKEN, VOCABULARY


@dataclass(frozen=True, slots=True)
class Segment:
    """`tokens` token ids drawn from `seed`."""

    seed: int
    tokens: int


Prompt = tuple[Segment, ...]


def prompt_tokens(prompt: Prompt) -> int:
    """Length of a prompt, tokens."""
    return sum(segment.tokens for segment in prompt)


def prompt_ids(prompt: Prompt) -> array[int]:
    """Its token ids, the same every time (int64)."""
    ids = array("q")
    for segment in prompt:
        ids.frombytes(_segment_bytes(segment.seed, segment.tokens))
    return ids


@functools.lru_cache(maxsize=4096)
def _segment_bytes(seed: int, tokens: int) -> bytes:
    """Token i of a segment is a hash of the seed and i alone, so a shorter segment of a seed
    is the beginning of a longer one. The hash is SplitMix64's (Steele et al., OOPSLA 2014)."""
    steps = np.arange(1, tokens + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = steps + np.uint64(seed % (1 << 64))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    ids = z % np.uint64(VOCABULARY - FIRST_TOKEN) + np.uint64(FIRST_TOKEN)
    return ids.astype(np.int64).tobytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. Times are seconds since the start of the workload.

    output_tokens: how long the answer really is. max_new_tokens: what the client allows,
    which is all that a scheduler knows before; None allows just `output_tokens`.
    deadline_s: when an offline answer is wanted, or None. ignores_eos: the client wants all
    that it allows, so the scheduler knows the length. job, weight: whose share an offline
    request takes, and what that weighs.
    """

    rid: str
    arrival_s: float
    prompt: Prompt
    output_tokens: int
    service_class: ServiceClass = ServiceClass.ONLINE
    max_new_tokens: int | None = None
    deadline_s: float | None = None
    ignores_eos: bool = False
    job: str | None = None
    weight: float | None = None

    @property
    def is_offline(self) -> bool:
        """True for batch work."""
        return self.service_class is ServiceClass.OFFLINE

    @property
    def prompt_tokens(self) -> int:
        """Length of its prompt."""
        return prompt_tokens(self.prompt)

    @property
    def allowed_tokens(self) -> int:
        """The client's limit of the answer."""
        return self.output_tokens if self.max_new_tokens is None else self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival. Raises WorkloadError if they are none, unordered or wrong."""

    requests: tuple[Request, ...]

    def __post_init__(self) -> None:
        if not self.requests:
            raise WorkloadError(
                "the workload is empty; check the rate, the time window and the share kept"
            )
        check_times([r.arrival_s for r in self.requests], "requests")
        for request in self.requests:
            _check_lengths(request)
        if len({r.rid for r in self.requests}) < len(self.requests):
            raise WorkloadError("two requests have the same rid; every rid must be its own")

    @property
    def online(self) -> tuple[Request, ...]:
        """The requests that somebody waits for."""
        return tuple(r for r in self.requests if not r.is_offline)

    @property
    def offline(self) -> tuple[Request, ...]:
        """The batch work."""
        return tuple(r for r in self.requests if r.is_offline)

    @property
    def sha256(self) -> str:
        """Name of the workload: equal hashes mean equal requests at equal times."""
        digest = hashlib.sha256()
        for request in self.requests:
            digest.update(repr(request).encode())
        return digest.hexdigest()


def merge(*parts: Iterable[Request]) -> Workload:
    """One workload of several; of requests that arrive together the earlier part is first."""
    requests = [request for part in parts for request in part]
    return Workload(tuple(sorted(requests, key=lambda r: r.arrival_s)))


def check_times(times_s: Sequence[float], what: str) -> None:
    """Raise WorkloadError naming the first time that is not finite, negative or out of order."""
    last_s = 0.0
    for place, time_s in enumerate(times_s, start=1):
        if not math.isfinite(time_s) or time_s < 0.0:
            raise WorkloadError(
                f"{what}: arrival {place} is at {time_s} s; times must be finite and not below 0"
            )
        if time_s < last_s:
            raise WorkloadError(
                f"{what}: arrival {place} is at {time_s:g} s, after one at {last_s:g} s; "
                "sort them by time"
            )
        last_s = time_s


def _check_lengths(request: Request) -> None:
    if request.prompt_tokens < 1 or any(s.tokens < 0 for s in request.prompt):
        raise WorkloadError(f"request {request.rid}: its prompt must have at least one token")
    if not 1 <= request.output_tokens <= request.allowed_tokens:
        raise WorkloadError(
            f"request {request.rid}: {request.output_tokens} output tokens of "
            f"{request.allowed_tokens} allowed; there must be at least one and no more than allowed"
        )


def shifted(requests: Iterable[Request], by_s: float) -> list[Request]:
    """The same requests, `by_s` seconds later."""
    return [replace(r, arrival_s=r.arrival_s + by_s) for r in requests]
