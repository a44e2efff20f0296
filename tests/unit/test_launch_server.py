"""The launcher's own part: which flags it takes, adds and leaves to SGLang."""

from __future__ import annotations

import pytest

from echo_sglang.launch_server import build_parser, main, wanted_flags, with_flags

CPU = {"SGLANG_PLATFORM": "echo_cpu"}


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
