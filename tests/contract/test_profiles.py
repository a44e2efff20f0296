"""Which profile a server takes: its own, another's only by force, a broken one never."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

import torch

from echo_sglang.adapter.identity import cpu_name, hardware_name, server_identity, server_limits
from echo_sglang.adapter.profiles import profile_for
from echo_sglang.config import EchoConfig
from echo_sglang.domain.batch import StepSample
from echo_sglang.errors import ProfileError
from echo_sglang.estimate.profile import Profile, Provenance
from echo_sglang.estimate.training import train
from tests.unit.trace_kit import load


def scheduler(tmp_path: Path, **changes: Any) -> Any:
    """What identity is read from, as SGLang's scheduler has it."""
    folder = tmp_path / "some-model"
    folder.mkdir(exist_ok=True)
    values = {
        "device": "cpu",
        "chunked_prefill_size": 512,
        "max_running_requests": 16,
        "max_total_num_tokens": 10_000,
        "server_args": SimpleNamespace(tp_size=1, attention_backend="echo_cpu", page_size=1),
        "model_config": SimpleNamespace(
            model_path=str(folder), dtype=torch.bfloat16, context_len=4096, vocab_size=49_152
        ),
    }
    return SimpleNamespace(**{**values, **changes})


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    samples = [StepSample(one.shape, one.step_s) for one in load(200)]
    training = train(samples, seed=1)
    return Profile(
        identity=server_identity(scheduler(tmp_path)),
        model=training.model,
        reports=training.reports,
        provenance=Provenance(
            commit="c", seed=1, created="2026-01-31", trace_schema=1, samples=len(samples)
        ),
    )


def written(profile: Profile, tmp_path: Path) -> str:
    path = tmp_path / "profile.json"
    path.write_text(profile.to_json())
    return str(path)


def test_without_the_flag_there_is_none(tmp_path: Path) -> None:
    assert profile_for(scheduler(tmp_path), EchoConfig()) is None


def test_a_server_takes_its_own(tmp_path: Path, profile: Profile) -> None:
    taken = profile_for(scheduler(tmp_path), EchoConfig(profile=written(profile, tmp_path)))
    assert taken is not None
    assert (taken.state, taken.profile) == ("matched", profile)


def test_another_servers_is_refused_by_every_difference_and_says_how_to_force_it(
    tmp_path: Path, profile: Profile
) -> None:
    other = replace(profile.identity, hardware="H100", dtype="float8", flags=("page_size=64",))
    path = written(replace(profile, identity=other), tmp_path)
    with pytest.raises(ProfileError) as refusal:
        profile_for(scheduler(tmp_path), EchoConfig(profile=path))
    for word in ("H100", "float8", "page_size=64", "attention_backend=echo_cpu"):
        assert word in str(refusal.value)
    assert "--echo-profile-force" in str(refusal.value)


def test_force_takes_it_and_says_so(
    tmp_path: Path, profile: Profile, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(replace(profile, identity=replace(profile.identity, model="x")), tmp_path)
    taken = profile_for(scheduler(tmp_path), EchoConfig(profile=path, profile_force=True))
    assert taken is not None and taken.state == "forced"
    assert "model x (server: some-model)" in caplog.text


def test_force_does_not_take_a_broken_one(tmp_path: Path, profile: Profile) -> None:
    path = tmp_path / "profile.json"
    path.write_text(profile.to_json()[:-20])
    with pytest.raises(ProfileError, match=r"profile\.json"):
        profile_for(scheduler(tmp_path), EchoConfig(profile=str(path), profile_force=True))


def test_an_identity_names_what_times_depend_on_and_no_path(tmp_path: Path) -> None:
    identity = server_identity(scheduler(tmp_path))
    assert identity.model == "some-model"
    assert identity.dtype == "bfloat16"
    assert identity.flags == ("attention_backend=echo_cpu", "page_size=1")
    hub = SimpleNamespace(model_path="org/model", dtype=torch.float16)
    assert server_identity(scheduler(tmp_path, model_config=hub)).model == "org/model"


def test_limits_are_what_a_sweep_needs(tmp_path: Path) -> None:
    from echo_sglang.cli.sweep import NEEDED_LIMITS

    assert set(server_limits(scheduler(tmp_path))) == set(NEEDED_LIMITS)


def test_a_cpu_is_named_by_model_and_cores(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name : Fast CPU @ 3 GHz\n")
    assert cpu_name(cpuinfo) == "Fast CPU @ 3 GHz"
    assert cpu_name(tmp_path / "absent") != ""
    assert hardware_name("cpu").endswith("cores")
