"""The demo's SLO follows the machine."""

from __future__ import annotations

import pytest
from demo import slo_of_machine, with_slo

from eval import contenders
from eval.harness.client import ECHO
from eval.harness.records import Slo


@pytest.mark.parametrize(
    ("ttft_s", "tpot_s", "slo"),
    [
        (0.2, 0.06, contenders.SLO),
        (0.4, 0.1, contenders.SLO),
        (1.0, 0.1, Slo(ttft_s=5.0, tpot_s=0.75)),
        (0.3, 0.35, Slo(ttft_s=7.0, tpot_s=1.05)),
    ],
)
def test_the_slo_is_longer_where_a_lone_message_takes_longer(
    ttft_s: float, tpot_s: float, slo: Slo, capsys: pytest.CaptureFixture[str]
) -> None:
    found = slo_of_machine(ttft_s, tpot_s)
    assert found == Slo(ttft_s=pytest.approx(slo.ttft_s), tpot_s=pytest.approx(slo.tpot_s))
    said = capsys.readouterr().out
    assert (f"TTFT {slo.ttft_s:.1f} s" in said) == (slo != contenders.SLO)


def test_chat_messages_say_their_slo_and_questions_do_not() -> None:
    told = with_slo(ECHO, Slo(ttft_s=5.0, tpot_s=0.75))
    assert told.online == {"echo": {"ttft_ms": 5000.0, "tpot_ms": 750.0}}
    assert told.offline == ECHO.offline
