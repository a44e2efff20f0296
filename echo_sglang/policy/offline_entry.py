"""One waiting offline request, as the pool and its order see it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from echo_sglang.policy.deadlines import DeadlineClass, Place, UrgencySettings
from echo_sglang.policy.jobs import NO_JOB, OUTPUT_COST, Job


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineEntry:
    """One waiting offline request; its tokens are in the pool's prefix index.

    num_tokens: of its prompt, or of prompt and output so far if it ran before.
    deadline_s: on the scheduler's clock, or None. parked_at_step: iteration in which it
    was released, None if it never ran; it stays away for `rest_steps`, or until more is left than
    `left_available_tokens` and `left_budget_s`, see `OfflineCandidate`. job, weight: whose share
    it takes, and what the request says that share weighs.
    """

    rid: str
    num_tokens: int
    arrival_s: float
    max_new_tokens: int
    deadline_s: float | None = None
    parked_at_step: int | None = None
    rest_steps: int = 0
    left_available_tokens: int = 0
    left_budget_s: float = math.inf
    job: str = NO_JOB
    weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Whose turn it is, and for how long.

    max_wait_s: older requests rise to the class of the urgent ones. turn_tokens: tokens of
    service that a job, or a group while somebody waits too long, gets before others must.
    weights: of jobs, by the operator; "*" stands for all others.
    """

    max_wait_s: float = 600.0
    turn_tokens: float = 65_536.0
    urgency: UrgencySettings = field(default_factory=UrgencySettings)
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class WaitingRequest:
    """An entry and its place in the pool.

    place: (arrival, ticket, rid), the order of arrival. due: its deadline class, if any.
    prompt_work: prompt tokens that no other prompt of the pool had when it came.
    """

    entry: OfflineEntry
    place: Place
    job: Job
    prompt_work: float
    due: DeadlineClass | None = None

    @property
    def work(self) -> float:
        """What it takes: those prompt tokens, and all the output it may have."""
        return self.prompt_work + OUTPUT_COST * self.entry.max_new_tokens
