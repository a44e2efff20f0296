"""For all tests: modules are imported without the garbage collector, as servers import them."""

from __future__ import annotations

import gc

from echo_sglang.adapter.collector import collect_from_now_on

gc.disable()


def pytest_collection_finish() -> None:
    """What the tests import has been imported by now."""
    collect_from_now_on()
