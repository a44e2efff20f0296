"""Online traffic that comes back: chats whose every turn repeats all that was said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from echo_sglang.errors import WorkloadError
from echo_sglang.sim.arrivals import Lengths
from echo_sglang.sim.workload import Request, Segment

MESSAGE = Lengths(mean=150)
ANSWER = Lengths(mean=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """Chats that begin as a Poisson process and go on for a geometric number of turns.

    chats_per_s: new chats. mean_turns: 1 or more. think_s: mean pause (exponential) between an
    arrival and the next turn's; a turn comes whether or not the last one was answered. The
    prompt of a turn is that of the last one, what was answered (as other tokens than were
    generated: clients tokenize anew) and the new message. Nothing begins after window_s.
    """

    chats_per_s: float
    window_s: float
    mean_turns: float = 5.0
    think_s: float = 40.0
    message: Lengths = MESSAGE
    answer: Lengths = ANSWER

    def __post_init__(self) -> None:
        if min(self.chats_per_s, self.window_s, self.think_s) <= 0 or self.mean_turns < 1:
            raise WorkloadError(
                f"{self.chats_per_s} chats/s for {self.window_s} s, {self.mean_turns} turns, "
                f"{self.think_s} s between them: rates and times must be above 0, turns 1 or more"
            )

    def requests(self, seed: int) -> list[Request]:
        """The turns of one seed, in order of arrival."""
        rng = np.random.default_rng(np.random.SeedSequence([seed, 11]))
        chats = rng.poisson(self.chats_per_s * self.window_s)
        found: list[Request] = []
        for chat, start_s in enumerate(np.sort(rng.uniform(0.0, self.window_s, chats)).tolist()):
            found.extend(self._turns(chat, start_s, rng))
        return sorted(found, key=lambda request: request.arrival_s)

    def _turns(self, chat: int, start_s: float, rng: np.random.Generator) -> list[Request]:
        turns = int(rng.geometric(1.0 / self.mean_turns))
        messages, answers = self.message.draw(rng, turns), self.answer.draw(rng, turns)
        texts = rng.integers(1 << 62, size=2 * turns).tolist()
        pauses_s = rng.exponential(self.think_s, turns).tolist()
        said: tuple[Segment, ...] = ()
        arrival_s = start_s
        requests: list[Request] = []
        for turn in range(turns):
            said = (*said, Segment(texts[2 * turn], messages[turn]))
            if arrival_s >= self.window_s:
                break
            requests.append(
                Request(
                    rid=f"chat-{chat}-{turn}",
                    arrival_s=arrival_s,
                    prompt=said,
                    output_tokens=answers[turn],
                )
            )
            said = (*said, Segment(texts[2 * turn + 1], answers[turn]))
            arrival_s += pauses_s[turn]
        return requests
