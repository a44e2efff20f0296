"""When waiting offline work will be done, and which of it must go first to be in time.

Requests with nearly the same deadline form a class. Served earliest deadline first, a class is
done after all the work due before it and its own, at the pace measured, plus the time that one
answer takes to decode. Laxity is what is left until the deadline then:

    laxity = deadline - now - (work due until then / pace) - (longest answer * time per step)

Work counts prompt tokens that no other waiting prompt shares, so a shared prefix counts once,
and output tokens as `policy/jobs.py` weighs them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sortedcontainers import SortedDict, SortedList

from echo_sglang.kv.prefix_index import Node

PACE_S = 60.0
"""The pace is that of about the last minute in which offline work waited."""

KNOWN_AFTER_S = 3.0
"""A pace measured for less than this is not known."""

RESOLUTION = 0.01
"""Deadlines closer than this share of the time left are one class."""

UNKNOWN_GUARD_S = 60.0
"""While no pace is known, what is due within this goes first."""

MAX_URGENCY = 4.0
REFRESH_S = 0.25

Place = tuple[float, int, str]
"""(arrival, ticket, rid) of a waiting request."""


class OfflinePace:
    """Measures how fast offline work is done while some of it waits.

    Raises nothing; answers None until enough was seen.
    """

    __slots__ = ("_allowed", "_now_s", "_produced", "_seconds", "_steps", "_work")

    def __init__(self) -> None:
        self._now_s: float | None = None
        self._seconds = self._steps = self._work = 0.0
        self._produced = self._allowed = 0.0

    def tick(self, now_s: float) -> None:
        """An iteration begins at `now_s` and offline work waits."""
        if self._now_s is not None and now_s > self._now_s:
            passed_s = now_s - self._now_s
            kept = math.exp(-passed_s / PACE_S)
            self._seconds = self._seconds * kept + passed_s
            self._steps = self._steps * kept + 1.0
            self._work *= kept
        self._now_s = now_s

    def pause(self) -> None:
        """Nothing waits any more: time that passes from here on says nothing."""
        self._now_s = None

    def done(self, work: float) -> None:
        """So much of the work that waited needs no more waiting for."""
        self._work += work

    def ended(self, output_tokens: int, allowed_tokens: int) -> None:
        """A request ended after `output_tokens` of the `allowed_tokens` it might have had."""
        self._produced = 0.99 * self._produced + output_tokens
        self._allowed = 0.99 * self._allowed + allowed_tokens

    @property
    def work_per_s(self) -> float | None:
        """Work done per second, None while unknown."""
        if self._seconds < KNOWN_AFTER_S or self._work <= 0.0:
            return None
        return self._work / self._seconds

    @property
    def step_s(self) -> float:
        """Mean time of an iteration; 0.0 while unknown."""
        return self._seconds / self._steps if self._steps else 0.0

    @property
    def output_share(self) -> float:
        """What answers take of what they are allowed; all of it until some have ended."""
        return min(self._produced / self._allowed, 1.0) if self._allowed else 1.0


class Due(NamedTuple):
    """When an answer is wanted, and when that became known, which rounds it."""

    deadline_s: float
    noted_s: float


@dataclass(slots=True, eq=False)
class DeadlineClass:
    """Waiting requests due at `due_s` or a little later.

    longest_tokens: the longest answer any of them may give. group: where it is at work.
    """

    due_s: float
    places: Any = field(default_factory=SortedList)
    work: float = 0.0
    longest_tokens: int = 0
    group: Node[str] | None = None
    urgency: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is predicted of one class.

    finish_s, laxity_s: None while no pace is known. late_requests: how many of its requests are
    predicted to miss the deadline even if all work with a deadline goes first.
    hopeless: too late even for one of them that starts now.
    """

    due_s: float
    requests: int
    work: float
    finish_s: float | None
    laxity_s: float | None
    late_requests: int
    urgent: bool
    hopeless: bool
    urgency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UrgencySettings:
    """When work with a deadline goes before all other: once its laxity is below a guard.

    guard_s, guard_share: the guard is the larger of guard_s seconds and this share of the
    predicted remaining time, since paces change.
    """

    guard_s: float = 15.0
    guard_share: float = 0.5


class Deadlines:
    """The classes in order of their deadlines. A change costs O(log requests)."""

    def __init__(self, settings: UrgencySettings) -> None:
        self._settings = settings
        self._classes: Any = SortedDict()
        self._outlook: tuple[Outlook, ...] = ()
        self._outlook_at_s = -math.inf

    def __len__(self) -> int:
        return len(self._classes)

    def add(
        self, place: Place, deadline_s: float, now_s: float, work: float, output_tokens: int
    ) -> DeadlineClass:
        """A request waits; returns its class."""
        due_s = _rounded_down(deadline_s, now_s)
        found: DeadlineClass | None = self._classes.get(due_s)
        if found is None:
            found = self._classes[due_s] = DeadlineClass(due_s)
            self._outlook_at_s = -math.inf
        found.places.add(place)
        found.work += work
        found.longest_tokens = max(found.longest_tokens, output_tokens)
        return found

    def remove(self, found: DeadlineClass, place: Place, work: float) -> None:
        """It left."""
        found.places.remove(place)
        found.work -= work
        if not found.places:
            del self._classes[found.due_s]
            self._outlook_at_s = -math.inf

    def urgent(self, now_s: float, pace: OfflinePace) -> Iterator[DeadlineClass]:
        """The classes that go before all other work, earliest deadline first.

        Not those that are too late whatever is done: they would only make others late.
        """
        for outlook in self.outlook(now_s, pace):
            found = self._classes.get(outlook.due_s)
            if found is not None and outlook.urgent:
                yield found

    def outlook(self, now_s: float, pace: OfflinePace) -> tuple[Outlook, ...]:
        """Every class, earliest first; at most REFRESH_S old. O(classes) when made anew."""
        if not 0.0 <= now_s - self._outlook_at_s < REFRESH_S:
            self._outlook_at_s = now_s
            self._outlook = tuple(self._predict(now_s, pace))
        return self._outlook

    def of(self, due_s: float, now_s: float, pace: OfflinePace) -> Outlook | None:
        """The outlook of the class that a deadline belongs to, None if there is none."""
        return next((o for o in self.outlook(now_s, pace) if o.due_s == due_s), None)

    def urgency_of_running(
        self, due: Due, now_s: float, pace: OfflinePace, *, output_tokens: int
    ) -> float:
        """What a token is worth of a request that runs, with so many tokens still to produce.

        As much as one of those that wait with it and are due when it is; at least what its own
        answer leaves of the time.
        """
        left_s = due.deadline_s - now_s
        if left_s <= 0.0:
            return 1.0
        need_s = 0.0
        if pace.work_per_s is not None:
            need_s = output_tokens * pace.output_share * pace.step_s
        own = 1.0 if left_s <= need_s else _urgency(left_s - need_s, self._guard_s(need_s))
        waiting = self._classes.get(_rounded_down(due.deadline_s, due.noted_s))
        return own if waiting is None else max(own, waiting.urgency)

    def _guard_s(self, need_s: float) -> float:
        return max(self._settings.guard_s, self._settings.guard_share * need_s)

    def _predict(self, now_s: float, pace: OfflinePace) -> Iterator[Outlook]:
        rate = pace.work_per_s
        before = 0.0
        for found in self._classes.values():
            left_s = max(found.due_s - now_s, 0.0)
            answer_s = 0.0 if rate is None else self._answer_s(found, pace)
            hopeless = left_s <= answer_s
            if rate is None:
                yield _unknown(found, left_s)
                continue
            work = before + found.work
            capacity = rate * max(left_s - answer_s, 0.0)
            yield self._known(found, now_s, work / rate + answer_s, work - capacity, hopeless)
            # What is too late once its deadline has passed holds up nobody due later.
            before = before if hopeless else min(work, rate * left_s)

    def _answer_s(self, found: DeadlineClass, pace: OfflinePace) -> float:
        return found.longest_tokens * pace.output_share * pace.step_s

    def _known(
        self, found: DeadlineClass, now_s: float, need_s: float, missing: float, hopeless: bool
    ) -> Outlook:
        laxity_s = found.due_s - now_s - need_s
        guard_s = self._guard_s(need_s)
        found.urgency = 1.0 if hopeless else _urgency(laxity_s, guard_s)
        return Outlook(
            due_s=found.due_s,
            requests=len(found.places),
            work=found.work,
            finish_s=now_s + need_s,
            laxity_s=laxity_s,
            late_requests=_late(found, missing),
            urgent=laxity_s < guard_s and not hopeless,
            hopeless=hopeless,
            urgency=found.urgency,
        )


def _unknown(found: DeadlineClass, left_s: float) -> Outlook:
    """While no pace is known."""
    hopeless = left_s <= 0.0
    found.urgency = 1.0 if hopeless else _urgency(left_s, UNKNOWN_GUARD_S)
    return Outlook(
        due_s=found.due_s,
        requests=len(found.places),
        work=found.work,
        finish_s=None,
        laxity_s=None,
        late_requests=len(found.places) if hopeless else 0,
        urgent=0.0 < left_s <= UNKNOWN_GUARD_S,
        hopeless=hopeless,
        urgency=found.urgency,
    )


def _urgency(laxity_s: float, guard_s: float) -> float:
    """1 with twice the guard to spare, MAX_URGENCY with nothing."""
    spare = min(max(laxity_s / max(2.0 * guard_s, 1e-9), 0.0), 1.0)
    return MAX_URGENCY - (MAX_URGENCY - 1.0) * spare


def _late(found: DeadlineClass, missing: float) -> int:
    """Requests of a class that `missing` work due until its deadline stands for."""
    if missing <= 0.0 or found.work <= 0.0:
        return 0
    share = min(missing / found.work, 1.0)
    return math.ceil(share * len(found.places) - 1e-9)


def _rounded_down(deadline_s: float, now_s: float) -> float:
    """On a grid as fine as RESOLUTION of the time left wants it, a power of two of seconds.

    So there are some hundred classes at most for one distance, however many deadlines.
    """
    left_s = max(deadline_s - now_s, 0.0)
    width_s = 2.0 ** max(math.floor(math.log2(max(RESOLUTION * left_s, 1.0))), 0)
    return math.floor(deadline_s / width_s) * width_s
