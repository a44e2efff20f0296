"""Hours, batches and the best of a trade-off, from windows."""

from __future__ import annotations

import math
from typing import Any

import pytest

from echo_sglang.sim.documents import DocumentQuestions
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.plan_answer import (
    HourAnswer,
    Latency,
    WindowAnswer,
    batch_seconds,
    by_hour,
    pareto,
)
from echo_sglang.sim.plan_question import Question, sample_starts
from echo_sglang.sim.recipe_names import online_source


def window(start_s: float = 0.0, **fields: Any) -> WindowAnswer:
    beside = Latency(
        attained=fields.pop("attained", 1.0),
        ttft_p99_s=fields.pop("ttft_s", 0.1),
        tpot_p99_s=fields.pop("tpot_s", 0.01),
    )
    return WindowAnswer(
        **{
            "start_s": start_s,
            "replicas": 2,
            "margin": 0.85,
            "online_requests": 300,
            "alone": Latency(attained=1.0),
            "beside": beside,
            "harvested_per_s": 1.0,
            "harvested_tokens_per_s": 1000.0,
            "hit_rate": None,
            "share_of_limit": None,
            "pool_dry": False,
        }
        | fields
    )


def question(**fields: Any) -> Question:
    return Question(
        device="A100-80G:Llama-3.1-8B",
        online=online_source("poisson:1"),
        offline=DocumentQuestions(documents=1),
        slo=Slo(),
        **fields,
    )


def hour(number: int, per_s: float, seconds: float = 3600.0) -> HourAnswer:
    return HourAnswer(
        hour=number,
        seconds=seconds,
        windows=1,
        online_per_s=1.0,
        attained=1.0,
        harvested_per_s=per_s,
        harvested_tokens_per_s=100 * per_s,
    )


def test_windows_are_summed_up_by_the_hour_of_their_middle() -> None:
    asked = question(window_s=300.0, length_s=5400.0)
    first, second = by_hour(
        asked,
        [
            window(600.0, harvested_tokens_per_s=1000.0),
            window(3300.0, harvested_tokens_per_s=3000.0, attained=0.9),
            window(3600.0, harvested_tokens_per_s=500.0),
        ],
    )
    assert (first.hour, first.windows, first.seconds) == (0, 2, 3600.0)
    # The middle of the second window, 3,450 s, is in hour 0; that of the third is in hour 1,
    # of which the trace covers 1,800 s.
    assert first.harvested_tokens_per_s == 2000.0 and first.attained == 0.9
    assert (second.seconds, second.harvested_tokens) == (1800.0, 500.0 * 1800.0)
    # 300 requests on each of two replicas in 300 s.
    assert first.online_per_s == 2.0


def test_an_endless_traffic_is_one_whole_hour() -> None:
    (only,) = by_hour(question(window_s=60.0), [window()])
    assert only.seconds == 3600.0


@pytest.mark.parametrize(
    ("lines", "wanted_s"),
    [
        (1800, 1800.0),
        (3600, 3600.0),
        # The second hour gives nothing, the third two a second.
        (3601, 7200.5),
        # A round of three hours does 10,800 lines; the next line comes a second later.
        (10_800, 10_800.0),
        (10_801, 10_801.0),
    ],
)
def test_a_batch_goes_through_the_hours_again_and_again(lines: int, wanted_s: float) -> None:
    hours = [hour(0, 1.0), hour(1, 0.0), hour(2, 2.0)]
    assert batch_seconds(lines, hours) == pytest.approx(wanted_s)


def test_without_any_harvest_a_batch_never_ends() -> None:
    assert batch_seconds(1, [hour(0, 0.0)]) == math.inf


def test_only_points_that_no_other_beats_are_best() -> None:
    fast = window(harvested_tokens_per_s=900.0, ttft_s=0.4)
    kind = window(harvested_tokens_per_s=500.0, ttft_s=0.2)
    beaten = window(harvested_tokens_per_s=500.0, ttft_s=0.3)
    assert pareto([fast, beaten, kind]) == (fast, kind)
    assert pareto([kind, kind]) == (kind, kind)


def test_windows_are_spread_evenly_over_every_hour() -> None:
    # Middles at 900 s and 2,700 s of the first hour, 4,500 s and 6,300 s of the second.
    assert sample_starts(7200.0, 300.0, 2) == (750.0, 2550.0, 4350.0, 6150.0)


def test_the_last_window_ends_with_the_trace() -> None:
    assert sample_starts(3500.0, 600.0, 1) == (1500.0,)
    assert sample_starts(2000.0, 600.0, 1) == (1400.0,)


@pytest.mark.parametrize("length_s", [None, 100.0, 300.0])
def test_one_window_covers_what_is_short_or_the_same_everywhere(length_s: float | None) -> None:
    assert sample_starts(length_s, 300.0, 4) == (0.0,)
