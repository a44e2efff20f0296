"""What the runner needs of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from echo_sglang.service.forecast import Speed
from echo_sglang.service.model import EngineAnswer, LineTag


class Engine(Protocol):
    """Answers batch lines as offline work."""

    async def submit(self, endpoint: str, body: Mapping[str, Any], tag: LineTag) -> EngineAnswer:
        """Run one line to its end. endpoint: one of `model.ENDPOINTS`.

        What is wrong with the line comes back as an answer with a 4xx or 5xx status, never
        as an exception. Cancelling the call aborts the request in the engine.
        Raises EngineGoneError if the engine died or was lost meanwhile.
        """
        ...

    async def speed(self) -> Speed:
        """How fast it does offline work now; asked when a client looks at a batch. May raise,
        or take its time: callers bound it."""
        ...

    @property
    def ready(self) -> bool:
        """True while the engine takes lines; no line is started otherwise."""
        ...

    @property
    def capacity(self) -> int:
        """How many lines it wants in flight at once now, those already there included.

        Enough for the scheduler to see future references, not more; 0 stops feeding.
        """
        ...
