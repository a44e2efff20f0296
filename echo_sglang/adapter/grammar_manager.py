"""SGLang's grammar manager with a bound in seconds on what a grammar may take to compile.

Base: sglang/srt/constrained/grammar_manager.py of the pinned release. Grammars compile in a pool
of threads beside the scheduler; a compilation that was given up runs on there to its end.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from sglang.srt.constrained.grammar_manager import GrammarManager

POLL_INTERVAL_ENV = "SGLANG_GRAMMAR_POLL_INTERVAL"
POLL_INTERVAL_S = 0.001
"""While a grammar compiles every iteration of the scheduler waits so long for it; SGLang's default
is 5 ms, which every online request would pay for each token."""


class BoundedGrammarManager(GrammarManager):
    """SGLang's, which gives a grammar up when it has compiled for `most_s` seconds.

    SGLang counts the iterations that a request waits, so its bound in seconds depends on the
    load. Ranks give up together: SGLang gathers what each has given up.
    """

    def __init__(self, scheduler: Any, most_s: float) -> None:
        super().__init__(scheduler)
        self.bound(most_s)

    def bound(self, most_s: float) -> None:
        """Let seconds count instead of iterations."""
        self.SGLANG_GRAMMAR_MAX_POLL_ITERATIONS = sys.maxsize
        if POLL_INTERVAL_ENV not in os.environ:
            self.SGLANG_GRAMMAR_POLL_INTERVAL = POLL_INTERVAL_S
        self._most_s = most_s
        self._since_s: dict[str, float] = {}

    def get_ready_grammar_requests(self) -> list[Any]:
        """As SGLang's; what has waited too long is among them, finished with an error."""
        now_s = self.scheduler.echo_clock()
        since = {req.rid: self._since_s.get(req.rid, now_s) for req in self.grammar_queue}
        for req in self.grammar_queue:
            if now_s - since[req.rid] > self._most_s:
                req.grammar_wait_ct = self.SGLANG_GRAMMAR_MAX_POLL_ITERATIONS
        self._since_s = since
        ready: list[Any] = super().get_ready_grammar_requests()
        return ready
