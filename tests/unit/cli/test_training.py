"""Train on a recorded trace, look at the profile; bad files end with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from echo_sglang.cli.main import app
from echo_sglang.cli.trace_files import load_trace, samples_of, trace_frame
from tests.unit.trace_kit import IDENTITY, lines, load, record

REGIMES = {"extend", "decode", "mixed", "overall"}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace in two files whose times follow a known law with 5 % noise."""
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    records = load(900)
    path.with_name("trace.jsonl.1").write_text("".join(lines(records[:500])))
    path.write_text("".join(lines(records[500:])))
    return path


@pytest.fixture(scope="module")
def profile(trace: Path) -> Path:
    path = trace.with_name("profile.json")
    result = run("train", trace, "-o", path)
    assert result.exit_code == 0, result.output
    return path


def test_training_writes_a_profile_and_a_plot_and_prints_errors_per_regime(trace: Path) -> None:
    path = trace.with_name("shown.json")
    result = run("train", trace, "-o", path)
    assert result.exit_code == 0, result.output
    for word in (*REGIMES, "p50", "p99", "bias", "under-predicted", "covered"):
        assert word in result.stdout
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in trace.parent.glob("*.partial")) == []


def test_its_errors_are_those_of_the_noise(trace: Path, tmp_path: Path) -> None:
    result = run("train", trace, "-o", tmp_path / "p.json", "--json")
    found: dict[str, Any] = json.loads(result.stdout)
    assert set(found["regimes"]) == REGIMES
    assert found["iterations"] == 900 - 8
    overall = found["regimes"]["overall"]
    # The median of |N(0, 5 %)| is 3.4 %; the fit adds some.
    assert 0.02 < overall["p50_error"] < 0.06
    assert overall["p50_error"] < overall["p90_error"] < overall["p99_error"]
    assert 0.9 < overall["coverage"] <= 1.0
    assert abs(overall["signed_bias"]) < 0.02


def test_the_same_seed_gives_the_same_profile(trace: Path, tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        assert run("train", trace, "-o", tmp_path / name, "--seed", "5").exit_code == 0
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()


def test_a_profile_carries_the_identity_of_its_server(profile: Path) -> None:
    result = run("inspect", profile, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["identity"] == IDENTITY
    assert found["provenance"]["samples"] == 900 - 8
    assert found["age_days"] in (0, 1)
    assert set(found["regimes"]) == REGIMES


def test_inspect_prints_for_people_too(profile: Path) -> None:
    result = run("inspect", profile)
    assert result.exit_code == 0
    for word in ("Test CPU, 2 cores", "tiny", "attention_backend=echo_cpu", *REGIMES):
        assert word in result.stdout


def test_a_torn_last_line_is_told_and_the_rest_is_used(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(lines(load(300)))[:-30])
    result = run("train", path, "-o", tmp_path / "p.json", "--json")
    assert result.exit_code == 0, result.output
    assert "left out" in result.stderr and "line 301" in result.stderr
    assert json.loads(result.stdout)["torn_lines"] == 1


def bad_traces() -> dict[str, str]:
    text = lines(load(100))
    return {
        "empty": "",
        "header only": text[0],
        "other version": text[0].replace('"version": 1', '"version": 9') + text[1],
        "nan": text[0] + text[1].replace(",", ", NaN,", 1),
        "binary": "\x00\x01" * 500,
        "too short": "".join(text[:30]),
        "corrupt": "".join([*text[:50], text[50][:9] + "\n", *text[51:]]),
        "not a trace": '{"hello": 1}\n',
        "alike": "".join([text[0], *lines([record(i, rows=2) for i in range(9, 200)])[1:]]),
    }


@pytest.mark.parametrize("name", bad_traces())
def test_a_bad_trace_ends_with_a_message_and_no_profile(name: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(bad_traces()[name])
    result = run("train", path, "-o", tmp_path / "p.json")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("echo-sglang: ") and len(result.stderr) > 40
    assert result.stdout == ""
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize("command", ["train", "inspect"])
def test_a_file_that_is_not_there_is_bad_input(command: str, tmp_path: Path) -> None:
    options = ("-o", tmp_path / "p.json") if command == "train" else ()
    result = run(command, tmp_path / "absent", *options)
    assert result.exit_code == 2
    assert "absent" in result.stderr


def test_a_profile_that_cannot_be_written_is_bad_input(trace: Path, tmp_path: Path) -> None:
    result = run("train", trace, "-o", tmp_path / "no" / "such" / "folder.json")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": "x"}', "\x00"])
def test_what_is_no_profile_is_bad_input(text: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    result = run("inspect", path)
    assert result.exit_code == 2, result.output
    assert "p.json" in result.stderr


def test_a_torn_profile_is_bad_input(profile: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(profile.read_text()[:-40])
    assert run("inspect", path).exit_code == 2


def test_iterations_after_a_start_and_idle_ones_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    idle = record(12)
    path.write_text("".join(lines([*(record(i, rows=1) for i in range(1, 12)), idle])))
    assert len(samples_of(load_trace(path), warm_up=8)) == 3


def test_a_trace_is_a_data_frame_with_a_row_an_iteration(trace: Path) -> None:
    frame = trace_frame(trace)
    assert list(frame["iteration"]) == list(range(1, 901))
    mixed = frame[frame["mode"] == "mixed"]
    assert (mixed["extend_tokens"] > 0).all() and (mixed["decode_rows"] > 0).all()
    assert (frame["offline_rows"] == frame["decode_rows"] - frame["online_rows"]).all()
    one = frame.iloc[3]
    assert one["extend_tokens"] == sum(chunk for chunk, _ in one["extends"])


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("profile", "train", "inspect", "check"):
        assert command in result.stdout
