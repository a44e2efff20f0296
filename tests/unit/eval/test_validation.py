"""A measured run is read, simulated and compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from echo_sglang.errors import WorkloadError
from eval.validation import DATA, RUN, MeasuredRun, compared, own_figures, run

SUMMARY = """Metric      vLLM    Sim    Diff%
-----
TTFT Median  60110.9  60578.1  +0.8%

TPOT P99     56.0     56.5    +0.9%
"""


def test_the_figures_of_the_data_s_own_simulator_are_read() -> None:
    assert own_figures(SUMMARY) == {"TTFT Median": 60578.1, "TPOT P99": 56.5}


def test_errors_are_relative_to_the_real_run() -> None:
    table = compared("TTFT", [1.0, 1.0], [1.1, 1.1], {"TTFT Median": 900.0}).set_index("metric")
    assert table.loc["TTFT p50", "error"] == pytest.approx(0.1)
    assert table.loc["TTFT p50", "its error"] == pytest.approx(-0.1)
    assert table["LLMServingSim ms"].isna().sum() == 2


def test_a_folder_without_a_run_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"no requests\.jsonl in .*--data"):
        MeasuredRun.read(tmp_path)


def test_a_run_of_another_policy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text("")
    (tmp_path / "meta.json").write_text(
        '{"resolved_config": {"scheduler_config": {"policy": "priority"}}, "kv_cache": {}}'
    )
    with pytest.raises(WorkloadError, match="first-come-first-served"):
        MeasuredRun.read(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "bench" / RUN).is_dir(), reason="no measured runs beside the project"
)
def test_the_real_run_is_foretold_within_bounds() -> None:
    """Measured: TTFT +1.6, +10.6, +2.6 %, TPOT +1.3, -3.7, +1.3 %. One quantile lies where the
    measured times jump; what is simulated must not drift from the others."""
    table, facts = run(DATA)
    errors = table.set_index("metric")["error"].abs()
    assert facts["requests"] == 300
    assert errors[["TTFT p50", "TTFT p99", "TPOT p50", "TPOT p95", "TPOT p99"]].max() < 0.05
    assert errors["TTFT p95"] < 0.15
    assert facts["simulated_s"] == pytest.approx(facts["measured_s"], rel=0.03)
