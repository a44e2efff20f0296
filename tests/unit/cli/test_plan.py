"""What the planner is asked is checked whole before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from echo_sglang.cli.main import app
from echo_sglang.estimate.profile import Profile, ProfileIdentity, Provenance
from tests.unit.estimate.machines import machine_training

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AT = "2023-11-16 18:00:"


def plan(tmp_path: Path, *options: object) -> Result:
    """Defaults of the test first: an option given twice counts as given last."""
    defaults = ("--online", "poisson:1", "--offline", "documents:2x2", "--results", tmp_path / "r")
    return CliRunner().invoke(app, ["plan", *map(str, (*defaults, *options))])


def refused(tmp_path: Path, *options: object) -> str:
    """The error of a plan that cannot be made; nothing may have run."""
    result = plan(tmp_path, *options)
    assert result.exit_code == 2, result.output
    assert not list(tmp_path.glob("r/runs/*")) and "run(s)" not in result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--slo", "500"), "expected 2 numbers"),
        (("--slo", "fast,50"), "expected numbers"),
        (("--slo", "500,5"), "TPOT 5 ms cannot be held"),
        (("--slo", "1,50"), "TTFT 1 ms cannot be held"),
        (("--slo", "nan,50"), "cannot be held"),
        (("--hardware", "TPU:Llama-3.1-8B"), "hardware A100-80G, H100, RTX4090"),
        (("--hardware", "H100:GPT-9"), "model Llama-3.1-8B"),
        (("--hardware", "RTX4090:Llama-3.1-70B"), "do not fit"),
        (("--hardware", "profile:nowhere.json"), "nowhere.json cannot be read"),
        (("--replicas", "0"), "replicas 0"),
        (("--attained", "1.5"), "attained 1.5"),
        (("--margins", "0.5,1.2"), "margins"),
        (("--window-s", "0"), "more than 0 s"),
        (("--window-s", "nan"), "more than 0 s"),
        (("--starts-s", "-5"), "0 s or later"),
        (("--batch-lines", "0"), "1 or more"),
        (("--batch-window-h", "0"), "above 0"),
        (("--kv-tokens", "0"), "1 or more"),
        (("--online-share", "0"), "above 0 to 1"),
        (("--online", "pigeons:3"), "azure:CSV"),
        (("--online", "poisson:0"), "azure:CSV"),
        (("--online", "azure:nowhere.csv"), "nowhere.csv cannot be read"),
        (("--offline", "novels:3"), "documents:DOCUMENTS"),
        (("--offline", "documents:0x5"), "must be 1 or more"),
        (("--offline", "batch:nowhere.jsonl"), "nowhere.jsonl cannot be read"),
        (("--offline", "documents:2x2", "--kv-tokens", "3000"), "4 of 4 requests are longer"),
    ],
)
def test_what_cannot_be_planned_is_said(
    options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    assert said in refused(tmp_path, *options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lacks column TIMESTAMP"),
        ("TIMESTAMP,ContextTokens\n", "lacks column GeneratedTokens"),
        (AZURE, "holds no requests"),
        (f"{AZURE}{AT}05.0,10,10\n{AT}04.0,10,10\n", "not below 0"),
        (f"{AZURE}{AT}01.0,9,9\n{AT}09.0,9,9\n{AT}05.0,9,9\n", "sort them by time"),
        (f"{AZURE}{AT}01.0,ten,9\n", "line 2: ContextTokens is 'ten'"),
        (f"{AZURE}{AT}01.0,9,0\n", "whole number above 0"),
        (f"{AZURE}yesterday,9,9\n", "TIMESTAMP 'yesterday'"),
        (f"{AZURE}{AT}01.0,200000,9\n", "1 of 1 requests are longer"),
    ],
)
def test_a_wrong_online_trace_is_refused(text: str, said: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(text)
    assert said in refused(tmp_path, "--online", f"azure:{trace}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"timestamp": -5, "input_length": 5, "output_length": 5, "hash_ids": [1]}', "below 0"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 5}', "need 1 hash_ids"),
        ("{", "not JSON"),
    ],
)
def test_a_wrong_mooncake_trace_is_refused(text: str, said: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(text + "\n")
    assert said in refused(tmp_path, "--online", f"mooncake:{trace}")


def test_windows_without_any_online_request_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(f"{AZURE}{AT}01.0,9,9\n{AT}31.0,9,9\n")
    said = refused(tmp_path, "--online", f"azure:{trace}", "--starts-s", "5000")
    assert "no online request arrives" in said and "ends at 30 s" in said


def test_more_windows_than_anybody_waits_for_are_refused(tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("window_start_s,req_per_s\n0,1\n1200000,1\n")
    # 1,200,000 s twice are 667 hours, 2 windows each.
    said = refused(tmp_path, "--online", f"servegen:{rates}")
    assert "1334 windows" in said and "--per-hour" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no requests"),
        ('{"custom_id": "a"}\n', "expected an object with custom_id and body"),
        ('{"custom_id": "a", "body": {"messages": []}}\n', "body needs messages"),
    ],
)
def test_wrong_offline_work_is_refused(text: str, said: str, tmp_path: Path) -> None:
    batch = tmp_path / "batch.jsonl"
    batch.write_text(text)
    assert said in refused(tmp_path, "--offline", f"batch:{batch}")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made on an H100 with Llama-3.1-8B-Instruct."""
    training = machine_training()
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    identity = ProfileIdentity(
        hardware="NVIDIA H100 80GB HBM3",
        model="meta-llama/Llama-3.1-8B-Instruct",
        sglang_version="0.5.23",
        dtype="bfloat16",
    )
    provenance = Provenance(commit="c", seed=0, created="2026-01-31", trace_schema=1, samples=1)
    made = Profile(
        identity=identity,
        model=training.model,
        reports=training.reports,
        provenance=provenance,
    )
    path.write_text(made.to_json())

    return path


@pytest.mark.parametrize(
    ("hardware", "said"),
    [
        ("A100-80G:Llama-3.1-8B", "on NVIDIA H100 80GB HBM3, not on NVIDIA A100-SXM4-80GB"),
        ("H100x4:Llama-3.1-70B", "of Llama-3.1-70B and with tensor parallel size 1, not 4"),
    ],
)
def test_a_profile_of_other_hardware_is_refused(
    profile: Path, hardware: str, said: str, tmp_path: Path
) -> None:
    assert said in refused(tmp_path, "--hardware", hardware, "--profile", profile)


def test_a_profile_alone_does_not_say_how_much_memory_there_is(
    profile: Path, tmp_path: Path
) -> None:
    assert "say --kv-tokens" in refused(tmp_path, "--hardware", f"profile:{profile}")


def test_a_changed_profile_is_refused(profile: Path, tmp_path: Path) -> None:
    values = json.loads(profile.read_text())
    values["identity"]["hardware"] = "NVIDIA A100-SXM4-80GB"
    (tmp_path / "p.json").write_text(json.dumps(values))
    said = refused(
        tmp_path, "--hardware", "A100-80G:Llama-3.1-8B", "--profile", tmp_path / "p.json"
    )
    assert "was changed" in said


def test_results_that_cannot_be_written_are_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be made" in refused(tmp_path, "--results", tmp_path / "file" / "below")
