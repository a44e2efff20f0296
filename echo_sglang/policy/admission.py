"""Which offline candidates slots, memory and decode time leave room for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from echo_sglang.domain.snapshot import OfflineCandidate
from echo_sglang.policy.bound import Bound
from echo_sglang.policy.iteration import Iteration
from echo_sglang.policy.preemption import RESULT_STEPS


@dataclass(frozen=True, slots=True)
class Admission:
    """Room for offline requests in one iteration."""

    iteration: Iteration
    bound: Bound

    def admissible(self, budget_s: float) -> tuple[OfflineCandidate, ...]:
        """Candidates that may be admitted, in their order. budget_s: time offline work has now.

        While a half-done prompt that gave way comes back in a moment, nobody begins another
        that is mostly uncached: it would take the only place of a cut prompt and leave the
        group of the first one half served.
        """
        snapshot = self.iteration.snapshot
        someone_online = bool(snapshot.waiting_online or snapshot.online.rows)
        if someone_online and not self.iteration.model.trained:
            return ()
        rows_left = self.row_room()
        tokens_left = self.memory_room()
        chosen: list[OfflineCandidate] = []
        about_to_resume = False
        for candidate in snapshot.candidates:
            if len(chosen) >= rows_left:
                break
            if candidate.rests and not self._grew_for(candidate, budget_s):
                about_to_resume = about_to_resume or candidate.rest_steps <= RESULT_STEPS
                continue
            if about_to_resume and not candidate.is_cached:
                continue
            need = candidate.extend_tokens + candidate.max_new_tokens + snapshot.page_size
            if need > tokens_left:
                break
            tokens_left -= need
            chosen.append(candidate)
        return tuple(chosen)

    def _grew_for(self, candidate: OfflineCandidate, budget_s: float) -> bool:
        """True if a request may end its rest: clearly more KV and time than when it gave way.

        The KV it gave back itself does not count: as much again as it needs must have come free.
        Time is at least twice what it was, and enough for twice the rows that decode.
        """
        if candidate.steps_parked is None or candidate.steps_parked < RESULT_STEPS:
            return False
        need = candidate.prefix_tokens + candidate.extend_tokens + candidate.max_new_tokens
        grown = self.iteration.snapshot.memory.available_tokens - candidate.left_available_tokens
        enough_s = 2.0 * max(candidate.left_budget_s, self.iteration.decode_s)
        return grown >= 2 * need and candidate.left_budget_s < math.inf and budget_s >= enough_s

    @property
    def slots(self) -> int:
        """Request slots that waiting online requests leave; below 0 if they lack some."""
        snapshot = self.iteration.snapshot
        return snapshot.free_slots - len(snapshot.waiting_online)

    def row_room(self) -> int:
        """Offline rows that may join before decoding everybody takes too long."""
        if not self.bound.model.trained:
            return min(self.slots, 1)
        return self.bound.row_room(self.iteration, self.slots)

    def memory_room(self) -> int:
        """KV tokens that offline requests may commit beyond what runs."""
        memory = self.iteration.snapshot.memory
        return memory.available_tokens - memory.growth_tokens - self.reserve_tokens()

    def reserve_tokens(self) -> int:
        """KV to leave alone: the burst reserve and idle online KV worth more than this work.

        Nothing while the server is empty, lest a long prompt starves.
        """
        snapshot = self.iteration.snapshot
        empty = not self.iteration.decode.decode_rows and not snapshot.waiting_online
        memory = snapshot.memory
        if empty and snapshot.chunk is None:
            return 0
        return memory.reserve_tokens + memory.protected_tokens
