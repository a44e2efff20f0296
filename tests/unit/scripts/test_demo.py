"""What the demo asks of a slow machine."""

from __future__ import annotations

import pytest
from demo import slo_for, slowness_of_machine

from eval import contenders
from eval.harness.records import Slo


@pytest.mark.parametrize(
    ("ttft_s", "tpot_s", "slowness"),
    [(0.2, 0.06, 1.0), (0.35, 0.09, 1.0), (0.75, 0.07, 3.0), (0.3, 0.13, 2.0)],
)
def test_a_machine_is_slow_by_the_slower_of_first_and_further_tokens(
    ttft_s: float, tpot_s: float, slowness: float, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slowness_of_machine(ttft_s, tpot_s) == slowness
    assert ("times the usual" in capsys.readouterr().out) == (slowness > 1.0)


def test_the_slo_is_as_many_times_longer() -> None:
    assert slo_for(1.0) == contenders.SLO
    assert slo_for(3.0) == Slo(ttft_s=pytest.approx(6.0), tpot_s=pytest.approx(0.9))
