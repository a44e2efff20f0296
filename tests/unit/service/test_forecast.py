"""What a batch needs, and whether a server of some speed gives it in time."""

from __future__ import annotations

import pytest

from echo_sglang.service.forecast import (
    ASSUMED_OUTPUT_TOKENS,
    MOST_OUTPUT_TOKENS,
    Demand,
    Speed,
    output_tokens_of,
    speed_of,
    warning_of,
)
from echo_sglang.service.validation import Validation
from tests.unit.service.http_kit import CHAT, lines

DEMAND = Demand(prompt_bytes=4_000, output_tokens=500)  # 1,000 + 2 * 500 = 2,000 tokens of work


def test_the_measured_pace_counts_before_what_an_idle_server_would_do() -> None:
    idle = Speed(idle_prompt_tokens_per_s=100.0, idle_output_tokens_per_s=50.0)
    assert idle.seconds_for(DEMAND) == 1_000 / 100 + 500 / 50 and idle.basis == "idle_server"
    busy = Speed(
        measured_work_per_s=20.0, idle_prompt_tokens_per_s=100.0, idle_output_tokens_per_s=50.0
    )
    assert busy.seconds_for(DEMAND) == 100.0 and busy.basis == "measured_pace"
    assert Speed().seconds_for(DEMAND) is None and Speed().basis == "unknown"


def test_the_speeds_of_replicas_add_up_if_all_are_known() -> None:
    one = {"offline": {"work_tokens_per_s": 5.0, "idle_server": None}}
    assert speed_of(one) == Speed(measured_work_per_s=5.0)
    assert speed_of([one, one]) == Speed(measured_work_per_s=10.0)
    unknown = {"offline": {"work_tokens_per_s": None}}
    assert speed_of([one, unknown]) == Speed()
    assert speed_of([None]) == speed_of({}) == Speed()


def test_a_window_that_holds_is_no_warning() -> None:
    assert warning_of(100.0, 100.0, "own_pace") is None
    assert warning_of(None, 0.0, "unknown") is None
    said = warning_of(7_200.0, 3_600.0, "idle_server")
    assert said is not None and "about 7,200 s" in said and "3,600 s left" in said


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7, "max_tokens": 9}, 7),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": 7, "n": 3}, 21),
        ({}, ASSUMED_OUTPUT_TOKENS),
        ({"max_tokens": "7", "n": True}, ASSUMED_OUTPUT_TOKENS),
        ({"max_tokens": -1, "n": 0}, ASSUMED_OUTPUT_TOKENS),
        ({"max_tokens": 10**12}, MOST_OUTPUT_TOKENS),
        ({"n": 5_000_000}, 128 * ASSUMED_OUTPUT_TOKENS),
    ],
)
def test_an_answer_may_have_what_its_line_says(body: dict[str, object], tokens: int) -> None:
    assert output_tokens_of(body) == tokens


def demand_of(content: bytes) -> Demand:
    validation = Validation(CHAT)
    assert len(list(validation.lines([content]))) and not validation.errors
    return validation.demand


def test_a_document_that_many_lines_share_counts_once() -> None:
    document = [{"role": "system", "content": "d" * 8_000}]
    one = demand_of(lines("0", messages=[*document, {"role": "user", "content": "a" * 400}]))
    many = b"".join(
        lines(f"{n}", messages=[*document, {"role": "user", "content": f"{n:0400d}"}])
        for n in range(20)
    )
    assert 8_400 < one.prompt_bytes < 8_600
    # To the last cut before they differ, at 8,192 bytes; what is behind it each has of its own.
    assert demand_of(many).prompt_bytes == one.prompt_bytes + 19 * (one.prompt_bytes - 8_192)
    assert demand_of(lines("a", "b")).prompt_bytes == demand_of(lines("a")).prompt_bytes
