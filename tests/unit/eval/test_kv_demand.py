"""The simulated occupancy is that of its assumptions, and the report says what was measured."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from echo_sglang.errors import WorkloadError
from eval import kv_demand
from eval.harness.occupancy import Occupancy, Trace, load_azure, load_mooncake
from eval.kv_demand import (
    ADAPTIVE,
    BASELINE,
    BLIND,
    Plan,
    orientation,
    play,
    summarise,
    text_table,
    verdict,
)
from eval.run import build_parser, main

TPOT_S = 0.1
AZURE_HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def random_trace(seed: int, *, requests: int, per_s: float) -> Trace:
    rng = random.Random(seed)
    arrival_s = np.cumsum([rng.expovariate(per_s) for _ in range(requests)])
    return Trace(
        arrival_s=arrival_s - arrival_s[0],
        prompt_tokens=np.array([rng.randint(1, 900) for _ in range(requests)]),
        output_tokens=np.array([rng.randint(1, 60) for _ in range(requests)]),
    )


def brute_force(trace: Trace, step: int) -> tuple[int, set[int]]:
    """KV tokens and requests that run after an iteration, request by request."""
    kv, running = 0, set()
    for index, arrival_s in enumerate(trace.arrival_s):
        produced = step - int(np.ceil(arrival_s / TPOT_S)) + 1
        if 1 <= produced <= trace.output_tokens[index]:
            kv += int(trace.prompt_tokens[index]) + produced
            running.add(index)
    return kv, running


def test_occupancy_is_the_sum_over_the_requests_that_run() -> None:
    trace = random_trace(1, requests=60, per_s=2.0)
    occupancy = Occupancy(trace, TPOT_S)
    ended: list[int] = []
    for step, running, just_ended in occupancy.play():
        kv, expected = brute_force(trace, step)
        assert occupancy.kv_tokens[step] == kv
        assert set(running) == expected
        told = occupancy.rows(step, running)
        assert sum(row.kv_tokens for row in told.rows) == kv
        assert told.step_s == TPOT_S
        ended += just_ended
    assert len(ended) == len(set(ended)) > 30


@pytest.mark.parametrize("horizon_s", [0.1, 0.2, 0.5, 3.0])
def test_increments_look_ahead_one_horizon(horizon_s: float) -> None:
    occupancy = Occupancy(random_trace(2, requests=40, per_s=2.0), TPOT_S)
    steps = round(horizon_s / TPOT_S)
    kv = occupancy.kv_tokens
    found = occupancy.increments(horizon_s)
    assert len(found) == len(kv) - steps
    for step, increment in enumerate(found):
        assert increment == max(0, int(kv[step + 1 : step + 1 + steps].max()) - int(kv[step]))


def test_an_azure_trace_is_read_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        AZURE_HEAD + "2023-11-16 18:17:04.0319600,3180,0\n2023-11-16 18:17:03.9799600,4808,10\n"
    )
    trace = load_azure(path)
    assert trace.arrival_s == pytest.approx([0.0, 0.052])
    assert list(trace.prompt_tokens) == [4808, 3180]
    assert list(trace.output_tokens) == [10, 1]


def test_a_mooncake_trace_is_read_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 3000 * i, "input_length": 5, "output_length": 7} for i in (1, 2)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert list(load_mooncake(path).arrival_s) == [0.0, 3.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "trace.csv is not in"),
        (AZURE_HEAD, "holds no request"),
        ("TIMESTAMP,Tokens\n2023-11-16 18:17:04.03,3\n", "not an Azure 2023 trace: KeyError"),
        (AZURE_HEAD + "yesterday,3,4\n", "not an Azure 2023 trace: ValueError"),
        (AZURE_HEAD + "2023-11-16 18:17:04.03,3\n", "not an Azure 2023 trace: TypeError"),
    ],
)
def test_a_trace_that_cannot_be_read_is_named(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "trace.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(WorkloadError, match=message):
        load_azure(path)


def test_violations_and_spare_tokens_are_counted_over_all_decisions() -> None:
    decisions = pd.DataFrame(
        {
            "horizon_s": 5.0,
            "forecast": "some",
            "reserve": [100, 100, 100, 100],
            "increment": [0, 100, 60, 180],
        }
    )
    row = summarise(decisions).iloc[0]
    assert row["violations"] == 0.25  # 180 alone; 100 is just enough
    assert row["over_reserve"] == (100 + 0 + 40 + 0) / 4
    assert row["lacking"] == 80 / 4
    assert row["reserve"] == 100
    assert row["decisions"] == 4


def test_every_forecast_decides_on_the_same_moments(tmp_path: Path) -> None:
    plan = Plan(results=tmp_path, tpot_s=TPOT_S, baseline_window_s=60.0, adaptive_window_s=60.0)
    decisions = play(plan, random_trace(3, requests=300, per_s=3.0))
    for horizon_s, part in decisions.groupby("horizon_s"):
        moments = [tuple(named["step"]) for _, named in part.groupby("forecast")]
        assert len(moments) == 7 and len(set(moments)) == 1
        same = part.drop_duplicates(["step", "increment"])
        assert len(same) == len(moments[0]), horizon_s


def test_the_rows_reach_only_the_forecast_that_may_know_them(tmp_path: Path) -> None:
    plan = Plan(results=tmp_path, tpot_s=TPOT_S, baseline_window_s=60.0, adaptive_window_s=60.0)
    decisions = play(plan, random_trace(4, requests=900, per_s=3.0)).query("horizon_s == 5.0")
    by_name = {name: list(part["reserve"]) for name, part in decisions.groupby("forecast")}
    assert by_name[ADAPTIVE] != by_name[BLIND]


def test_the_verdict_is_on_five_seconds_and_both_figures() -> None:
    def row(forecast: str, horizon_s: float, violations: float, over: float) -> dict[str, object]:
        return {
            "part": "some",
            "forecast": forecast,
            "horizon_s": horizon_s,
            "violations": violations,
            "over_reserve": over,
        }

    table = pd.DataFrame(
        [
            row(ADAPTIVE, 5.0, 0.058, 900.0),
            row(BASELINE, 5.0, 0.02, 1_000.0),
            row(ADAPTIVE, 30.0, 0.3, 9e9),
        ]
    )
    assert list(verdict(table, 0.05).values()) == [True, True]
    assert list(verdict(table.replace({0.058: 0.062}), 0.05).values()) == [False, True]
    assert list(verdict(table.replace({900.0: 1_001.0}), 0.05).values()) == [True, False]


def test_the_orientation_counts_moments_above_mean_plus_two_sigma_of_the_window_before() -> None:
    trace = random_trace(5, requests=1_500, per_s=3.0)
    grid = orientation(trace).set_index(["tpot_ms", "window_s"])["exceeded"]
    kv = Occupancy(trace, 0.05).kv_tokens.astype(float)
    exceeded = []
    for step in range(1_199, len(kv) - 600):  # 60 s are 1,200 iterations, 30 s are 600
        window = kv[step - 1_199 : step + 1]
        ahead = max(kv[step : step + 601])
        exceeded.append(ahead > window.mean() + 2.0 * window.std())
    assert 0.0 < np.mean(exceeded) < 1.0
    assert grid[50, 60] == pytest.approx(np.mean(exceeded), abs=1e-3)


def test_the_experiment_writes_provenance_table_and_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_demand, "WARM_UP_S", 30.0)
    azure, mooncake = tmp_path / "azure_llm_2023", tmp_path / "mooncake_fast25"
    azure.mkdir()
    mooncake.mkdir()
    trace = random_trace(6, requests=400, per_s=2.0)
    lines = zip(trace.arrival_s, trace.prompt_tokens, trace.output_tokens, strict=True)
    rows = [(float(at_s), int(prompt), int(output)) for at_s, prompt, output in lines]
    start = pd.Timestamp("2023-11-16 18:00:00")
    text = AZURE_HEAD + "".join(
        f"{(start + pd.Timedelta(seconds=at_s)).strftime('%Y-%m-%d %H:%M:%S.%f')},{p},{o}\n"
        for at_s, p, o in rows
    )
    for name in ("conv", "code"):
        (azure / f"AzureLLMInferenceTrace_{name}.csv").write_text(text)
    (mooncake / "conversation_trace.jsonl").write_text(
        "\n".join(
            json.dumps({"timestamp": int(1e3 * at_s), "input_length": p, "output_length": o})
            for at_s, p, o in rows
        )
    )
    results = tmp_path / "results"
    table = kv_demand.run(Plan(results=results, data=tmp_path, tpot_s=TPOT_S))
    assert len(table) == 4 * 3 * 7
    assert len(text_table(table).splitlines()) == 1 + len(table)
    written = json.loads((results / "kv_demand.json").read_text())
    assert written["provenance"]["hardware"] == "CPU"
    assert written["settings"]["tpot_s"] == TPOT_S
    assert len(written["verdict"]) == 4 * 2
    assert len(pd.read_csv(results / "table.csv")) == len(table)
    assert "100 ms per output token" in (results / "table.txt").read_text()


def test_the_command_line_names_a_missing_trace_and_a_bad_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kv-demand", "--data", str(tmp_path)]) == 1
    assert "AzureLLMInferenceTrace_conv.csv is not in" in capsys.readouterr().err
    assert main(["kv-demand", "--tpot-ms", "0"]) == 1
    assert "tpot_s 0.0: allowed is above 0" in capsys.readouterr().err
    assert build_parser().parse_args(["kv-demand"]).violation_rate == 0.05


def test_the_azure_conversations_are_whole() -> None:
    path = kv_demand.DATA / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv"
    if not path.is_file():
        pytest.skip("the Azure traces are not in ../shared/data")
    trace = load_azure(path)
    assert len(trace.arrival_s) == 19_366
    assert trace.arrival_s[-1] == pytest.approx(3_501.72, abs=0.01)
