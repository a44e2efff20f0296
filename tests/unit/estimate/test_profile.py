"""Profiles come back exactly as written, or say what is wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from echo_sglang.errors import ProfileError
from echo_sglang.estimate.profile import Profile, ProfileIdentity, Provenance
from echo_sglang.estimate.step_time import StepTimeFitter

from .machines import machine_samples, machine_training

IDENTITY = ProfileIdentity(
    hardware="1x invented",
    model="small-llama",
    sglang_version="0.5.23",
    dtype="bfloat16",
    tp_size=1,
    flags=("--enable-mixed-chunk", "--attention-backend=native"),
)
PROVENANCE = Provenance(
    commit="0123abc", seed=5, created="2026-01-31", trace_schema=1, samples=2_000
)


def profile() -> Profile:
    training = machine_training()
    return Profile(
        identity=IDENTITY, model=training.model, reports=training.reports, provenance=PROVENANCE
    )


def changed(*path: str | int, value: Any) -> str:
    """The profile's text with one value replaced."""
    values = json.loads(profile().to_json())
    inner = values
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return json.dumps(values)


def test_a_profile_is_read_exactly_as_it_was_written() -> None:
    original = profile()
    read = Profile.from_json(original.to_json())
    assert read == original
    for sample in machine_samples(100, seed=1):
        assert read.model.upper(sample.shape) == original.model.upper(sample.shape)


def test_a_model_calibrated_live_can_be_kept_as_a_profile() -> None:
    fitter = StepTimeFitter(start=machine_training().model)
    for sample in machine_samples(200, seed=2):
        fitter.observe(sample.shape, sample.seconds)
    kept = replace(profile(), model=fitter.model)
    assert Profile.from_json(kept.to_json()) == kept


def test_a_model_learned_from_nothing_is_no_profile() -> None:
    with pytest.raises(ProfileError, match="train one first"):
        replace(profile(), model=StepTimeFitter().model).to_json()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("{", "truncated"),
        ("[1, 2]", "no echo_sglang step-time profile"),
        ("{}", "no echo_sglang step-time profile"),
        ('{"format": "echo_sglang step-time profile", "version": 7}', "version 7"),
        ('{"format": "echo_sglang step-time profile", "version": 2}', "lacks 'identity'"),
        ("[" * 100_000, "corrupt|truncated"),
    ],
)
def test_a_text_that_is_no_profile_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(ProfileError, match=said):
        Profile.from_json(text)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_profile_is_called_truncated(share: float) -> None:
    text = profile().to_json().strip()
    with pytest.raises(ProfileError, match="truncated"):
        Profile.from_json(text[: int(share * len(text))])


SLOPES = ("model", "fitted", "mixed", "curves", 0, "slopes_s")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ((*SLOPES, 0), -1e-6, "mixed curve 0 slopes_s has a negative value"),
        ((*SLOPES, 0), float("nan"), "not finite: NaN"),
        ((*SLOPES, 0), float("inf"), "not finite: Infinity"),
        ((*SLOPES, 0), "fast", "a number is expected"),
        ((*SLOPES, 0), 1.0, "jumps at knot"),
        (SLOPES, [], "segments"),
        (("model", "fitted", "decode", "constant_s"), -0.1, "decode constant_s has a negative"),
        (("model", "fitted", "decode", "curves"), [], "0 curves, expected 5"),
        (("model", "fitted", "decode", "lattice"), [[0, 0, 0, 3.0]], "out of bounds"),
        (("model", "fitted_weight"), -1.0, "fitted_weight has a negative"),
        (("model", "extend_log_factor"), None, "a number is expected"),
        (("model", "weights_s"), [1.0], "1 weights, expected 13"),
        (("model", "hull", "reach"), 0.5, "reach"),
        (("model", "hull", "mixed"), [1.0], "corrupt"),
        (("model", "fitted"), None, "corrupt"),
        (("identity", "tp_size"), "one", "tp_size is 'one'"),
        (("identity", "flags"), "--a", "list of strings"),
        (("reports", 0, "coverage"), "high", "coverage is 'high'"),
        (("provenance", "seed"), 1.5, "seed is 1.5"),
        (("provenance", "seed"), 6, "changed after it was written"),
        (("sha256",), "0", "changed after it was written"),
        (("identity", "colour"), "red", "corrupt.*colour"),
    ],
)
def test_a_corrupt_profile_says_where(path: tuple[str | int, ...], value: Any, said: str) -> None:
    with pytest.raises(ProfileError, match=said):
        Profile.from_json(changed(*path, value=value))


def test_an_overflowing_number_is_not_finite() -> None:
    text = changed("model", "fitted_weight", value=12345.5).replace("12345.5", "1e999")
    with pytest.raises(ProfileError, match="not finite"):
        Profile.from_json(text)


def test_the_same_server_matches_whatever_the_order_of_its_flags() -> None:
    profile().require_match(replace(IDENTITY, flags=tuple(reversed(IDENTITY.flags))))


def test_each_difference_to_the_server_is_listed() -> None:
    other = replace(IDENTITY, hardware="8x other", tp_size=8, flags=())
    with pytest.raises(ProfileError) as caught:
        profile().require_match(other)
    message = str(caught.value)
    assert "hardware 1x invented (server: 8x other)" in message
    assert "tp_size 1 (server: 8)" in message
    assert "--enable-mixed-chunk (server: none)" in message
    assert "dtype" not in message


def test_a_forced_profile_is_used_on_any_server() -> None:
    profile().require_match(replace(IDENTITY, model="another"), force=True)


def test_the_age_of_a_profile_is_counted_in_days() -> None:
    assert profile().age_days("2026-03-01") == 29
    with pytest.raises(ProfileError, match="YYYY-MM-DD"):
        profile().age_days("next week")
