"""What a runner does with batches, each step under a lease."""

from __future__ import annotations

from echo_sglang.service.database import Database


class WorkTable:
    """What a runner does with batches (see the runner; the API has no use for it)."""

    def __init__(self, database: Database) -> None:
        self._database = database
