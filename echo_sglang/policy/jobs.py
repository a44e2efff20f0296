"""Fair shares of offline work: every job is served by its weight, measured in virtual time.

A job's virtual time is the tokens it was served per unit of weight; the waiting job with the
least is next (weighted fair queueing; tokens as in VTC, arXiv 2401.00588). Serving in turns of
a few prefix groups instead of request by request keeps locality, at a bounded lead (the idea of
DLPM, arXiv 2501.14312).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sortedcontainers import SortedList

from echo_sglang.kv.prefix_index import Node

OUTPUT_COST = 2.0
"""Tokens of service that one output token counts, as in VTC; a computed prompt token counts 1."""

NO_JOB = ""
"""The job of requests that name none."""

OTHERS = "*"
"""The weight of all jobs that an operator did not name."""

RECENT_S = 60.0
"""Shares are measured over about this long: service is forgotten by 1/e in it."""

MAX_IDLE = 1024
"""Jobs with nothing left to do whose account is kept."""

MAX_GROUPS = 4
"""Groups that a job may be in the middle of; the oldest is forgotten beyond."""


@dataclass(slots=True, eq=False)
class Job:
    """One job: what of it waits, and what it was served.

    virtual: tokens served per unit of weight. queue: (arrival, ticket, rid) of its requests
    that never ran. warm: heap of (tokens to compute per cached token, ticket, rid).
    groups: prefix groups it is in the middle of, the newest last. waiting: its requests in the
    pool. running: those admitted and neither ended nor back in the pool.
    """

    name: str
    order: int
    weight: float = 1.0
    virtual: float = 0.0
    queue: Any = field(default_factory=SortedList)
    warm: list[tuple[float, int, str]] = field(default_factory=list)
    groups: list[Node[str]] = field(default_factory=list)
    waiting: int = 0
    running: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    due_s: float | None = None
    _recent: float = 0.0
    _recent_at_s: float = 0.0

    def served(self, tokens: float, now_s: float) -> None:
        """`tokens` of service were given at `now_s`."""
        self._recent = self.recent_tokens(now_s) + tokens
        self._recent_at_s = now_s

    def recent_tokens(self, now_s: float) -> float:
        """Service within about the last minute."""
        passed_s = max(now_s - self._recent_at_s, 0.0)
        return self._recent * math.exp(-passed_s / RECENT_S)

    def enter_group(self, node: Node[str], *, inside: bool) -> None:
        """A request was admitted whose nearest waiting relatives are below `node`.

        inside: it belonged to the newest group, which `node` now stands for.
        """
        if inside and self.groups:
            self.groups.pop()
        self.groups = [group for group in self.groups if group.count and group is not node]
        self.groups.append(node)
        del self.groups[:-MAX_GROUPS]


class FairShares:
    """The jobs and whose turn it is. Every change costs O(log jobs)."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        self._jobs: dict[str, Job] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._waiting: Any = SortedList()
        self._floor = 0.0
        self._created = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def num_waiting(self) -> int:
        """Jobs with requests that never ran."""
        return len(self._waiting)

    def job(self, name: str, weight: float | None = None) -> Job:
        """The job of that name, made if it is new. weight: what a request says, None nothing.

        What the operator says counts more than what a request says.
        """
        job = self._jobs.get(name)
        if job is None:
            self._created += 1
            job = self._jobs[name] = Job(name, self._created)
            job.weight = self._weights.get(name, self._weights.get(OTHERS, 1.0))
        if weight is not None and name not in self._weights and OTHERS not in self._weights:
            self._change(job, weight=weight)
        self._idle.pop(name, None)
        return job

    def jobs(self) -> Iterator[Job]:
        """All jobs remembered."""
        return iter(self._jobs.values())

    def enqueue(self, job: Job, place: tuple[float, int, str]) -> None:
        """A request that never ran waits. A job that comes back gets no credit for its absence."""
        if not job.queue:
            job.virtual = max(job.virtual, self._floor)
            self._waiting.add(_key(job))
        job.queue.add(place)

    def dequeue(self, job: Job, place: tuple[float, int, str]) -> None:
        """That request left."""
        job.queue.remove(place)
        if not job.queue:
            self._waiting.remove(_key(job))
            if not self._waiting:
                self._floor = max(self._floor, job.virtual)

    def left(self, job: Job) -> None:
        """A request of it ended or left the pool; idle jobs are forgotten beyond MAX_IDLE."""
        if job.waiting or job.running:
            return
        self._idle[job.name] = None
        if len(self._idle) > MAX_IDLE:
            del self._jobs[self._idle.popitem(last=False)[0]]

    def charge(self, job: Job, tokens: float, now_s: float) -> None:
        """`job` was served."""
        job.served(tokens, now_s)
        self._change(job, virtual=job.virtual + tokens / job.weight)
        if self._waiting:
            self._floor = max(self._floor, self._waiting[0][0])

    def in_turn(self) -> Iterator[Job]:
        """Jobs with requests that never ran, the one served least first."""
        return (self._jobs[name] for _, _, name in self._waiting)

    def lead_tokens(self, job: Job) -> float:
        """Tokens that `job` was served beyond the waiting job served least."""
        least = self._waiting[0][0] if self._waiting else job.virtual
        return (job.virtual - least) * job.weight

    def _change(self, job: Job, **values: float) -> None:
        waits = bool(job.queue)
        if waits:
            self._waiting.remove(_key(job))
        for name, value in values.items():
            setattr(job, name, value)
        if waits:
            self._waiting.add(_key(job))


def _key(job: Job) -> tuple[float, int, str]:
    return (job.virtual, job.order, job.name)
