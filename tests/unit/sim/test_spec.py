from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from echo_sglang.config import EchoConfig
from echo_sglang.errors import ConfigError, WorkloadError
from echo_sglang.sim.__main__ import main
from echo_sglang.sim.arrivals import PoissonTraffic
from echo_sglang.sim.batch_jobs import BatchFile, LengthsFile
from echo_sglang.sim.documents import DocumentQuestions, Order
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.spec import RunSpec
from echo_sglang.sim.traces import AzureTrace, MooncakeTrace, Part, ServeGenRates

SPEC = RunSpec(
    device="A100-80G:Llama-3.1-8B",
    setup=ServerSetup(echo=EchoConfig(slo_ttft_ms=500), server_args={"page_size": 16}),
    recipes=(
        PoissonTraffic(rate_per_s=2.0, window_s=10.0),
        DocumentQuestions(documents=2, order=Order.SORTED),
        AzureTrace(path=Path("a.csv"), part=Part(start_s=1.0)),
        MooncakeTrace(path=Path("m.jsonl")),
        ServeGenRates(path=Path("s.csv")),
        LengthsFile(path=Path("l.csv")),
        BatchFile(path=Path("b.jsonl")),
    ),
    seed=3,
    window_s=10.0,
)


def test_a_spec_survives_being_written_down() -> None:
    assert RunSpec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC


def test_equal_specs_have_equal_digests_and_others_do_not() -> None:
    again = RunSpec.from_json(SPEC.to_json())
    assert again.digest == SPEC.digest != replace(SPEC, seed=4).digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipes": [{"kind": "Magic"}]}, "unknown kind 'Magic'"),
        ({"speed": 3}, "speed"),
        ({"setup": {"kind": "ServerSetup", "gpus": 2}}, "gpus"),
    ],
)
def test_what_is_not_a_spec_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        RunSpec.from_json(SPEC.to_json() | change)


def test_the_command_says_what_is_wrong_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "spec.json"
    path.write_text('{"device": 1}', encoding="utf-8")
    assert main(["run", str(path)]) == 2
    assert "not the description of an emulated run" in capsys.readouterr().err
    assert main(["run", str(tmp_path / "missing.json")]) == 2


def test_echo_takes_no_priorities() -> None:
    with pytest.raises(ConfigError, match="service tier"):
        ServerSetup(echo=EchoConfig(), priority=True)
    with pytest.raises(ConfigError, match="must be 1 or more"):
        ServerSetup(kv_tokens=0)


@pytest.mark.parametrize("bound_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_that_is_no_time_is_refused(bound_s: float) -> None:
    with pytest.raises(ConfigError, match="seconds above 0"):
        ServerSetup(bound_s=bound_s)


def test_echo_bounds_its_iterations_itself() -> None:
    with pytest.raises(ConfigError, match="without Echo"):
        ServerSetup(echo=EchoConfig(), bound_s=0.04)
