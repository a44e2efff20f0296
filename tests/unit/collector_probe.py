"""Imported by a spawned process, as what it runs: whether the garbage collector was on."""

import gc
from multiprocessing.queues import Queue

ON_WHILE_IMPORTED = gc.isenabled()


def tell(answers: "Queue[tuple[bool, bool]]") -> None:
    """Put (on while this module was imported, on now)."""
    answers.put((ON_WHILE_IMPORTED, gc.isenabled()))
