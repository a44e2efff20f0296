"""How many examples a property is tried on: all in `make test`, fewer in `make check`."""

from __future__ import annotations

import os

from hypothesis import settings

QUICK_SHARE = 5
LEAST = 10


def examples(many: int) -> settings:
    """Settings for `many` examples; a fifth of them if ECHO_QUICK_TESTS is set, 10 at least."""
    if os.environ.get("ECHO_QUICK_TESTS"):
        many = min(many, max(many // QUICK_SHARE, LEAST))
    return settings(max_examples=many, deadline=None)
