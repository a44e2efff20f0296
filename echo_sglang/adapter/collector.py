"""Keeps full garbage collections short where 100,000 requests wait.

Python's collector walks every object it knows in a full collection: with a large pool that takes
tenths of a second, in which no online row gets a token. Waiting requests, prefix index and cache
tree are freed by reference counts and need no collector. SGLang offers POST /freeze_gc for the
same trouble, by hand (sglang/srt/utils/common.py::freeze_gc).
"""

from __future__ import annotations

import gc
from typing import Any

THAW_S = 3600.0
"""How often an idle server looks through everything again."""


def collect_from_now_on() -> None:
    """Turn the collector on, to look at what will be made and never at what is there.

    For a process that imported thousands of modules with the collector turned off: it would walk
    them again and again, which takes a third of the CPU time of a start.
    """
    gc.freeze()
    gc.enable()


class SettledObjects:
    """What survives a full collection is not walked again, but for once an hour in idle moments.

    So every object is walked once or twice, whatever the pool's size. Nothing that was garbage is
    kept: it was just collected. What becomes cyclic garbage later waits for the next thaw. The
    collector belongs to the process: `close` undoes everything.
    """

    def __init__(self) -> None:
        self._due = False
        self._thawed_s: float | None = None
        gc.callbacks.append(self._noted)

    def settle(self) -> None:
        """Between iterations: freeze what survived, if there was a full collection."""
        if self._due:
            self._due = False
            gc.freeze()

    def idle(self, now_s: float) -> None:
        """Nothing runs: look through everything, if the last time is an hour ago."""
        if self._thawed_s is None:
            self._thawed_s = now_s
        if now_s - self._thawed_s >= THAW_S:
            self._thawed_s = now_s
            gc.unfreeze()
            gc.collect()

    def close(self) -> None:
        """Let the collector be as it was."""
        if self._noted in gc.callbacks:
            gc.callbacks.remove(self._noted)
            gc.unfreeze()

    def _noted(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "stop" and info["generation"] == 2:
            self._due = True
