"""The meter of bench-decide charges every moment once, and the least of equal runs counts."""

from __future__ import annotations

import time
from typing import Any

from eval.iteration_meter import Meter, figures_of


def spin(seconds: float) -> None:
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


def test_what_is_called_within_is_charged_to_its_own_owner_only() -> None:
    meter = Meter()
    inner = meter.owned(lambda: spin(0.002), "cache")

    def outer() -> None:
        spin(0.001)
        inner()

    meter.owned(outer, "added")()
    meter.next_iteration()
    (iteration,) = meter.iterations
    assert iteration["cache"][0] >= 0.002
    assert iteration["added"][0] >= 0.001
    total_s = sum(cpu_s for cpu_s, _ in iteration.values())
    assert total_s >= 0.003
    assert iteration["added"][0] + iteration["cache"][0] <= total_s


def test_what_follows_the_end_of_a_run_is_no_iteration() -> None:
    meter = Meter()
    meter.owned(lambda: spin(0.001), "added")()
    meter.next_iteration()
    meter.ended = True
    meter.owned(lambda: spin(0.001), "added")()
    meter.next_iteration()
    assert len(meter.iterations) == len(meter.rows) == 1


def test_the_least_of_equal_runs_counts_for_every_iteration() -> None:
    def run(added_s: list[float]) -> dict[str, Any]:
        nothing = [(0.0, 0.0)] * len(added_s)
        parts: dict[str, Any] = dict.fromkeys(
            ("cache", "engine", "decide", "snapshot", "refit"), nothing
        )
        parts["added"] = [(cpu_s, 2 * cpu_s) for cpu_s in added_s]
        return {"parts": parts, "rows": [3] * len(added_s), "loops_s": [1.0], "collections": []}

    found = figures_of([run([1e-6, 9e-6, 3e-6]), run([5e-6, 2e-6, 4e-6])])
    # 1, 2 and 3 us: median 2, p99 3; wall twice that
    assert [round(figure, 6) for figure in found["added"]] == [2.0, 3.0, 4.0, 6.0]
    assert found["rows"] == 3
