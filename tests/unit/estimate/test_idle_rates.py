"""What a server would do with offline work alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from echo_sglang.domain.batch import BatchShape
from echo_sglang.estimate.idle_rates import IdleRates, idle_rates
from echo_sglang.estimate.step_time import StepTimeModel


@dataclass
class Linear:
    """10 ms an iteration, 0.1 ms a prompt token, 1 ms a row; knows at most `known` of either."""

    known: int = 10**9
    trained: bool = True

    def predict(self, shape: BatchShape) -> float:
        return 0.010 + 0.0001 * shape.extend_tokens + 0.001 * shape.decode_rows

    def extrapolates(self, shape: BatchShape) -> bool:
        return max(shape.extend_tokens, shape.decode_rows) > self.known


def test_whole_chunks_and_as_many_rows_as_the_memory_holds() -> None:
    rates = idle_rates(Linear(), chunk_tokens=2_000, rows=90, kv_tokens=40 * 1_024)
    assert rates is not None
    assert rates.prompt_tokens_per_s == pytest.approx(2_000 / 0.210)
    assert rates.output_tokens_per_s == pytest.approx(40 / 0.050)  # 40 rows of 1,024 tokens


def test_sizes_that_were_never_seen_are_not_promised() -> None:
    rates = idle_rates(Linear(known=600), chunk_tokens=2_000, rows=8, kv_tokens=10**6)
    assert rates == IdleRates(
        prompt_tokens_per_s=pytest.approx(500 / 0.060),
        output_tokens_per_s=pytest.approx(8 / 0.018),
    )


def test_an_untrained_model_gives_no_rates() -> None:
    assert idle_rates(StepTimeModel(), chunk_tokens=512, rows=8, kv_tokens=10_000) is None
