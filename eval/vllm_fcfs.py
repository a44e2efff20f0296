"""vLLM's first-come-first-served scheduler, reduced to what decides when a token comes.

After vLLM 0.19's v1 scheduler with its defaults: running requests first, then waiting ones while
the token budget lasts; a prompt is admitted if all of it fits into free blocks and may be cut to
the budget; who finds no block preempts the newest running request, which is computed again but
for those of its blocks that nobody took meanwhile. Under asynchronous scheduling an iteration is
planned when the one before it starts, so it knows neither who ends there nor who arrives during it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from eval.gpu_tables import Prompts

Seconds = Callable[[Prompts, int, int], float]
"""Time of an iteration: prompts (tokens, tokens before them), decode rows, their KV tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """blocks: KV blocks that requests can have. budget_tokens: of one iteration."""

    blocks: int
    block_tokens: int = 16
    budget_tokens: int = 2048
    max_rows: int = 256
    asynchronous: bool = True


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One request and what became of it. Times are seconds.

    computed: tokens of its context that are in the KV cache, counted when planned. planned:
    output tokens planned so far; given: output tokens its client has.
    """

    rid: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    computed: int = 0
    planned: int = 0
    given: int = 0
    preemptions: int = 0
    blocks: list[int] = field(default_factory=list)
    first_s: float = math.nan
    last_s: float = math.nan

    @property
    def context_tokens(self) -> int:
        """Prompt and outputs planned: what must be computed before the next output."""
        return self.prompt_tokens + self.planned

    @property
    def ttft_s(self) -> float:
        """Seconds from arrival to the first token."""
        return self.first_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Mean seconds per token after the first; nan with fewer than two."""
        gaps = self.output_tokens - 1
        return (self.last_s - self.first_s) / gaps if gaps else math.nan


class Blocks:
    """KV blocks. A free one keeps its content until it is taken, the longest free first."""

    def __init__(self, count: int) -> None:
        self._free: dict[int, None] = dict.fromkeys(range(count))
        self._content: dict[int, tuple[int, int]] = {}
        self._holder: dict[tuple[int, int], int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be taken."""
        return len(self._free)

    def take(self, request: Request, count: int) -> None:
        """Give `count` more blocks to a request. There must be as many."""
        for _ in range(count):
            block = next(iter(self._free))
            del self._free[block]
            self._holder.pop(self._content.pop(block, (-1, -1)), None)
            content = (request.rid, len(request.blocks))
            self._content[block], self._holder[content] = content, block
            request.blocks.append(block)

    def give_back(self, request: Request) -> None:
        """Free all blocks of a request, the last of them to be taken first."""
        for block in reversed(request.blocks):
            self._free[block] = None
        request.blocks.clear()

    def kept(self, request: Request, most: int) -> list[int]:
        """The blocks, at most `most`, that still hold the beginning of a request."""
        found: list[int] = []
        while len(found) < most:
            block = self._holder.get((request.rid, len(found)))
            if block is None:
                break
            found.append(block)
        return found

    def take_kept(self, request: Request, kept: Sequence[int]) -> None:
        """Give a request back the blocks that `kept` found."""
        for block in kept:
            del self._free[block]
        request.blocks.extend(kept)


@dataclass(frozen=True, slots=True)
class Iteration:
    """What one iteration computes. sampled: requests that get a token at its end."""

    prompts: tuple[tuple[int, int], ...]
    rows: int
    kv_tokens: int
    sampled: tuple[Request, ...]


class FcfsScheduler:
    """Plans iterations; see the module."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._blocks = Blocks(settings.blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def plan(self) -> Iteration | None:
        """The next iteration; None if there is nothing to compute."""
        parts: dict[Request, int] = {}
        budget = self._settings.budget_tokens
        preempted = False
        for request in list(self.running):
            if request not in self.running or request.planned >= request.output_tokens:
                continue
            tokens = min(request.context_tokens - request.computed, budget)
            if tokens < 1:
                continue
            while (fits := self._extend(request, tokens)) is False:
                victim = self.running.pop()
                budget += parts.pop(victim, 0)
                self._preempt(victim)
                preempted = True
                if victim is request:
                    break
            if fits:
                parts[request] = tokens
                budget -= tokens
        if not preempted:
            self._admit(parts, budget)
        return self._iteration(parts) if parts else None

    def finish(self, request: Request) -> None:
        """Its last token was given; it may have been preempted while that was in flight."""
        self._blocks.give_back(request)
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)

    def _admit(self, parts: dict[Request, int], budget: int) -> None:
        size = self._settings.block_tokens
        while self.waiting and budget > 0 and len(self.running) < self._settings.max_rows:
            request = self.waiting[0]
            kept = self._blocks.kept(request, (request.context_tokens - 1) // size)
            whole = -(-request.context_tokens // size)
            if whole > self._blocks.num_free:
                return
            self.waiting.popleft()
            self._blocks.take_kept(request, kept)
            request.computed = len(kept) * size
            tokens = min(request.context_tokens - request.computed, budget)
            assert self._extend(request, tokens)
            self.running.append(request)
            parts[request] = tokens
            budget -= tokens

    def _extend(self, request: Request, tokens: int) -> bool:
        """Blocks for the next `tokens` of a request; False if there are too few."""
        wanted = -(-(request.computed + tokens) // self._settings.block_tokens)
        more = max(wanted - len(request.blocks), 0)
        if more > self._blocks.num_free:
            return False
        self._blocks.take(request, more)
        return True

    def _preempt(self, request: Request) -> None:
        self._blocks.give_back(request)
        request.computed = 0
        request.preemptions += 1
        self.waiting.appendleft(request)

    def _iteration(self, parts: dict[Request, int]) -> Iteration:
        prompts: list[tuple[int, int]] = []
        rows = kv_tokens = 0
        sampled: list[Request] = []
        for request, tokens in parts.items():
            if request.planned and tokens == 1:
                rows += 1
                kv_tokens += request.computed + 1
            else:
                prompts.append((tokens, request.computed))
            request.computed += tokens
            if request.computed == request.context_tokens:
                request.planned += 1
                sampled.append(request)
        return Iteration(tuple(prompts), rows, kv_tokens, tuple(sampled))


def simulate(requests: Sequence[Request], seconds: Seconds, settings: Settings) -> int:
    """Serve `requests`, in order of arrival, and note their times; returns the iterations."""
    scheduler = FcfsScheduler(settings)
    coming = deque(requests)
    in_flight: deque[tuple[Iteration, float]] = deque()
    depth = 2 if settings.asynchronous else 1
    now_s = free_s = 0.0
    iterations = 0
    while coming or in_flight or scheduler.waiting or scheduler.running:
        while coming and coming[0].arrival_s <= now_s:
            scheduler.waiting.append(coming.popleft())
        iteration = scheduler.plan()
        if iteration is not None:
            iterations += 1
            work_s = seconds(iteration.prompts, iteration.rows, iteration.kv_tokens)
            free_s = max(free_s, now_s) + work_s
            in_flight.append((iteration, free_s))
            if len(in_flight) < depth:
                continue
        if in_flight:
            ended, now_s = in_flight.popleft()
            _deliver(ended, now_s, scheduler)
        elif coming:
            now_s = max(now_s, coming[0].arrival_s)
        else:
            raise ValueError(
                f"{len(scheduler.waiting)} requests can never run in {settings.blocks} blocks of "
                f"{settings.block_tokens} tokens; drop the longest"
            )
    return iterations


def _deliver(iteration: Iteration, now_s: float, scheduler: FcfsScheduler) -> None:
    for request in iteration.sampled:
        request.given += 1
        request.last_s = now_s
        if request.given == 1:
            request.first_s = now_s
        if request.given == request.output_tokens:
            scheduler.finish(request)
