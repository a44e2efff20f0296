from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from echo_sglang.domain.batch import BatchShape
from echo_sglang.errors import ConfigError, ProfileError
from echo_sglang.launch_server import emulate
from echo_sglang.sim.catalog import ProfiledDevice, device_from
from echo_sglang.sim.environment import EMULATE_ENV
from echo_sglang.sim.live_flags import server_flags
from echo_sglang.sim.wall_device import WallDevice
from tests.unit.estimate.test_profile import profile


class Clock:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Constant:
    """A device that takes a tenth of a second for anything."""

    def seconds(self, shape: BatchShape) -> float:
        return 0.1


def test_work_is_queued_behind_what_runs_and_waited_for_only_when_read() -> None:
    clock = Clock()
    wall = WallDevice(Constant(), clock, clock.sleep)
    first, second = wall.queue(BatchShape()), wall.queue(BatchShape())
    assert clock.now_s == 100.0 and not first.query()
    first.synchronize()
    assert clock.now_s == pytest.approx(100.1) and first.query() and not second.query()
    second.synchronize()
    assert clock.now_s == pytest.approx(100.2)
    second.synchronize()
    assert clock.now_s == pytest.approx(100.2)


def test_a_device_that_has_been_idle_starts_at_once() -> None:
    clock = Clock()
    wall = WallDevice(Constant(), clock, clock.sleep)
    wall.queue(BatchShape()).synchronize()
    clock.sleep(5.0)
    wall.queue(BatchShape()).synchronize()
    assert clock.now_s == pytest.approx(105.2)


def test_an_emulated_server_has_no_weights_and_the_kv_of_its_device() -> None:
    flags = dict(flag.partition("=")[::2] for flag in server_flags("A100-80G:Llama-3.1-8B"))
    assert flags["--load-format"] == "dummy"
    assert flags["--dtype"] == "bfloat16"
    assert int(flags["--max-total-tokens"]) == pytest.approx(426_788, abs=2)
    assert json.loads(flags["--json-model-override-args"])["num_hidden_layers"] == 1


def test_the_device_reaches_the_scheduler_through_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(EMULATE_ENV, "left over")
    assert emulate(None) == []
    assert EMULATE_ENV not in os.environ
    assert emulate("H100x2:Llama-3.1-70B")
    assert os.environ[EMULATE_ENV] == "H100x2:Llama-3.1-70B"
    with pytest.raises(ConfigError, match="A100-80G"):
        emulate("TPU:Llama-3.1-8B")
    assert EMULATE_ENV not in os.environ


def test_a_profile_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="nowhere cannot be read"):
        device_from("profile:nowhere")
    (tmp_path / "empty").write_text("", encoding="utf-8")
    with pytest.raises(ProfileError, match="empty"):
        device_from(f"profile:{tmp_path / 'empty'}")


def test_a_profiled_device_takes_what_its_model_expects() -> None:
    known = profile()
    device = ProfiledDevice("profile:x", known)
    shape = BatchShape(decode_rows=4, decode_kv_tokens=400)
    assert device.seconds(shape) == known.model.predict(shape) > 0.0
