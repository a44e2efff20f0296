"""The launcher's own part: which flags it takes, adds and leaves to SGLang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from echo_sglang.launch_server import build_parser, main, wanted_flags, with_flags

CPU = {"SGLANG_PLATFORM": "echo_cpu"}

SPAWNED_BY_THE_LAUNCHER = """
import importlib.util, multiprocessing, sys
from tests.unit.collector_probe import tell

sys.modules["__main__"].__spec__ = importlib.util.find_spec("echo_sglang.launch_server")
context = multiprocessing.get_context("spawn")
answers = context.Queue()
child = context.Process(target=tell, args=(answers,))
child.start()
print(*answers.get(timeout=60))
child.join()
"""


def wanted(argv: list[str], environment: dict[str, str]) -> list[str]:
    known, _ = build_parser().parse_known_args(argv)
    return wanted_flags(known, environment)


def test_flags_of_sglang_pass_through_untouched() -> None:
    argv = ["--model-path", "m", "--slo-ttft-ms", "9", "--tp-size", "1", "--echo-off"]
    known, rest = build_parser().parse_known_args(argv)
    assert rest == ["--model-path", "m", "--tp-size", "1"]
    assert (known.slo_ttft_ms, known.echo_off) == (9.0, True)


def test_mixed_chunks_are_on_and_overlap_is_off_where_nothing_overlaps() -> None:
    cache = "--radix-cache-backend=echo"
    assert wanted([], {}) == ["--enable-mixed-chunk", cache]
    assert wanted([], CPU) == ["--enable-mixed-chunk", cache, "--disable-overlap-schedule"]


def test_all_of_it_can_be_had_otherwise() -> None:
    argv = ["--echo-no-mixed-chunk", "--echo-cpu-overlap", "--echo-eviction", "lru"]
    assert wanted(argv, CPU) == []


def test_a_flag_that_was_given_is_not_given_twice() -> None:
    assert with_flags(["--enable-mixed-chunk", "-x"], ["--enable-mixed-chunk", "--y"]) == [
        "--enable-mixed-chunk",
        "-x",
        "--y",
    ]
    assert with_flags(["--backend", "mine"], ["--backend=echo"]) == ["--backend", "mine"]
    assert with_flags(["--backend=mine"], ["--backend=echo"]) == ["--backend=mine"]


def test_a_bad_value_ends_with_a_message_and_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-path", "m", "--slo-tpot-ms", "-5"]) == 2
    assert "--slo-tpot-ms -5.0: allowed is above 0" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "", "{", '{"format": "other"}'])
def test_a_profile_that_cannot_be_used_ends_the_launcher_before_a_model_is_loaded(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)
    assert main(["--model-path", "m", "--echo-profile", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and "echo-sglang" in error


def test_a_trace_where_nothing_can_be_written_ends_the_launcher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "absent" / "trace.jsonl"
    assert main(["--model-path", "m", "--echo-trace", str(path)]) == 2
    assert f"--echo-trace {path}: allowed is" in capsys.readouterr().err


def test_a_stock_server_has_no_batches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model-path", "m", "--echo-off", "--echo-data-dir", "d"]) == 2
    assert "--echo-off" in capsys.readouterr().err


def test_a_spawned_process_has_no_garbage_collector_until_it_has_imported_what_it_runs() -> None:
    command = [sys.executable, "-c", SPAWNED_BY_THE_LAUNCHER]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.split() == ["False", "True"]


def test_whoever_imports_the_launcher_keeps_the_collector() -> None:
    code = "import gc, echo_sglang.launch_server; print(gc.isenabled())"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert told.stdout.split() == ["True"]
