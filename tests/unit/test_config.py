"""Flags: one source, checked at birth, carried whole into other processes."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from echo_sglang.config import EchoConfig, flag_of
from echo_sglang.errors import ConfigError


def test_flags_given_on_the_command_line_reach_the_configuration() -> None:
    parser = argparse.ArgumentParser()
    EchoConfig.add_arguments(parser)
    arguments = parser.parse_args(["--slo-ttft-ms", "500", "--echo-reserve-tokens", "64"])
    config = EchoConfig.from_arguments(vars(arguments))
    assert config == EchoConfig(slo_ttft_ms=500.0, reserve_tokens=64)


def test_a_switch_is_off_until_it_is_given_and_takes_no_value() -> None:
    parser = argparse.ArgumentParser()
    EchoConfig.add_arguments(parser)
    given, absent = parser.parse_args(["--echo-profile-force"]), parser.parse_args([])
    assert EchoConfig.from_arguments(vars(given)) == EchoConfig(profile_force=True)
    assert EchoConfig.from_arguments(vars(absent)) == EchoConfig()


def test_a_configuration_survives_the_environment() -> None:
    config = EchoConfig(slo_tpot_ms=42.5, decision_log="somewhere.jsonl")
    assert EchoConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("slo_ttft_ms", 0.0, "--slo-ttft-ms"),
        ("slo_tpot_ms", -1.0, "--slo-tpot-ms"),
        ("slo_tpot_ms", float("nan"), "--slo-tpot-ms"),
        ("slo_margin", 1.5, "--echo-slo-margin"),
        ("coverage", 0.2, "--echo-coverage"),
        ("reserve_tokens", -2, "--echo-reserve-tokens"),
        ("reserve_ceiling_tokens", -2, "--echo-reserve-ceiling-tokens"),
        ("reserve_horizon_s", 0.0, "--echo-reserve-horizon-s"),
        ("reserve_quantile", 1.0, "--echo-reserve-quantile"),
        ("reserve_quantile", 0.4, "--echo-reserve-quantile"),
        ("eviction", "fifo", "--echo-eviction"),
        ("online_weight", -0.5, "--echo-online-weight"),
        ("turn_tokens", 0, "--echo-turn-tokens"),
        ("job_weights", "gold", "--echo-job-weights"),
        ("job_weights", "gold=", "--echo-job-weights"),
        ("job_weights", "=2", "--echo-job-weights"),
        ("job_weights", "gold=0", "--echo-job-weights"),
        ("job_weights", "gold=1,*=1000", "--echo-job-weights"),
        ("job_weights", "gold=nan", "--echo-job-weights"),
        ("online_weight", float("inf"), "--echo-online-weight"),
        ("min_parked_steps", 1, "--echo-min-parked-steps"),
        ("max_pooled", 0, "--echo-max-pooled"),
        ("trace_mb", 0.0, "--echo-trace-mb"),
        ("trace_files", 0, "--echo-trace-files"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_its_flag(
    field: str, value: Any, flag: str
) -> None:
    with pytest.raises(ConfigError, match=flag) as refusal:
        EchoConfig(**{field: value})
    assert "allowed is" in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"no_such_field": 1}'])
def test_an_environment_value_that_is_no_configuration_says_what_to_do(text: str) -> None:
    with pytest.raises(ConfigError, match=r"echo_sglang\.launch_server"):
        EchoConfig.from_json(text)


def test_the_reserve_is_forecast_between_limits_unless_it_is_given() -> None:
    assert EchoConfig().reserve_limits(10_000) == (200, 1_000)
    assert EchoConfig(reserve_floor_tokens=3_000).reserve_limits(10_000) == (3_000, 3_000)
    assert EchoConfig(reserve_tokens=0).reserve_limits(10_000) == (0, 0)
    assert EchoConfig(reserve_tokens=700).reserve_limits(10_000) == (700, 700)


@pytest.mark.parametrize(
    "name", ["reserve_tokens", "reserve_floor_tokens", "reserve_ceiling_tokens"]
)
def test_a_reserve_above_half_of_the_pool_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="at most half") as refusal:
        EchoConfig(**{name: 6_000}).reserve_limits(10_000)
    assert flag_of(name) in str(refusal.value)


def test_a_reserve_whose_floor_is_above_its_ceiling_is_refused() -> None:
    config = EchoConfig(reserve_floor_tokens=900, reserve_ceiling_tokens=800)
    with pytest.raises(ConfigError, match="at least the floor, 900"):
        config.reserve_limits(10_000)


def test_weights_of_jobs_are_read_with_a_name_for_all_others() -> None:
    config = EchoConfig(job_weights=" gold = 4, team=a=0.5 ,*=1,")
    assert config.weights_of_jobs() == {"gold": 4.0, "team=a": 0.5, "*": 1.0}
    assert EchoConfig().weights_of_jobs() == {}
