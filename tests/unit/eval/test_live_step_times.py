"""A trace is replayed as a server learned from it."""

from __future__ import annotations

import pytest

from echo_sglang.domain.batch import BatchShape, StepSample
from eval.live_step_times import Plan, errors, replay


def machine(count: int) -> list[StepSample]:
    """8 ms and 4 ms a row; every tenth iteration prefills 100 tokens for 100 ms more."""
    samples = []
    for number in range(count):
        rows = 1 + number % 6
        shape = BatchShape(decode_rows=rows, decode_kv_tokens=100 * rows)
        seconds = 0.008 + 0.004 * rows
        if number % 10 == 0:
            shape, seconds = shape.with_chunk(100, 0), seconds + 0.1
        samples.append(StepSample(shape, seconds))
    return samples


def test_a_steady_machine_is_predicted_and_covered_after_the_first_fit() -> None:
    predictions = replay(machine(600))
    assert predictions["predicted"].isna().sum() < 100
    rows = {row["regime"]: row for row in errors(predictions.iloc[300:])}
    assert rows["overall"]["iterations"] == 300
    assert rows["overall"]["p50"] < 0.02
    assert rows["overall"]["coverage"] >= 0.95
    assert rows["decode"]["iterations"] + rows["mixed"]["iterations"] == 300


def test_nothing_is_predicted_by_what_came_later() -> None:
    samples = machine(400)
    slower = [StepSample(s.shape, 3 * s.seconds) for s in samples[300:]]
    changed = replay([*samples[:300], *slower])
    assert changed.iloc[:300].equals(replay(samples).iloc[:300])


def test_the_load_changes_half_way(tmp_path) -> None:
    before, after = Plan(results=tmp_path, model_path=tmp_path, half_s=60.0).loads()
    assert after.online_rate_per_s == pytest.approx(2 * before.online_rate_per_s)
    assert (before.window_s, after.window_s) == (60.0, 60.0)
    assert after.document_words < before.document_words
