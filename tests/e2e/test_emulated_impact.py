"""Bounded by impact, an online request waits for one offline iteration at most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from echo_sglang.sim.processes import run_apart
from eval.impact import ALONE, BOUNDED, Plan, measure

pytestmark = pytest.mark.slow

RATE, WINDOW_S = 0.4, 30.0
ITERATION_S = 0.026
"""Twice a decode step of one row, which is what an iteration takes at most while nobody is
online; and a little, since requests that come later meet other iterations."""


@pytest.fixture(scope="module")
def runs() -> dict[str, dict[str, Any]]:
    """The same arrivals alone and beside 400 questions."""
    plan = Plan(results=Path("unused"), documents=40)
    specs = [plan.spec(mode, RATE, WINDOW_S, 1).to_json() for mode in (ALONE, BOUNDED)]
    return dict(zip((ALONE, BOUNDED), run_apart(measure, specs, jobs=2), strict=True))


def test_no_first_token_waits_for_more_than_the_iteration_that_runs(
    runs: dict[str, dict[str, Any]],
) -> None:
    alone, bounded = runs[ALONE]["ttfts_s"], runs[BOUNDED]["ttfts_s"]
    assert len(alone) == len(bounded) > 5
    late_s = [later - earlier for earlier, later in zip(alone, bounded, strict=True)]
    assert max(late_s) <= ITERATION_S
    assert runs[BOUNDED]["summary"]["offline_done"] > 5


def test_tokens_come_later_by_no_more_than_what_one_row_adds(
    runs: dict[str, dict[str, Any]],
) -> None:
    # One row of 4,060 tokens adds 0.33 ms to 12.5 ms; credit saved up is spent by it only.
    for earlier, later in zip(runs[ALONE]["tpots_s"], runs[BOUNDED]["tpots_s"], strict=True):
        assert later <= 1.04 * earlier
