"""What Echo relies on in SGLang's scheduler exists in the installed, patched SGLang."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.schedule_policy import PrefillAdder
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.observability.req_time_stats import (
    APIServerReqTimeStats,
    DPControllerReqTimeStats,
    SchedulerReqTimeStats,
)

from echo_sglang.adapter import compat, verify
from echo_sglang.adapter.prefill_adder import EchoPrefillAdder
from echo_sglang.adapter.radix_cache import EchoFullComponent, EchoRadixCache
from echo_sglang.adapter.requests import EchoReq
from echo_sglang.adapter.running_rows import DecodingRows
from echo_sglang.adapter.scheduler import EchoScheduler
from echo_sglang.adapter.tree_core import EchoTreeCore
from echo_sglang.adapter.tree_key import EchoKey
from echo_sglang.config import EvictionPolicy
from echo_sglang.errors import IncompatibleError
from echo_sglang.sim.environment import EMULATE_ENV

ECHOS_OWN = {
    "echo_clock",
    "arrived_s",
    "echo_wall_clock",
    "cache_clock",
    "echo_config",
    "dump_decisions",
    "give_offline_back",
    "let_offline_iteration_end",
    "wait_for_device",
    "probe_cached",
}
"""Public methods of EchoScheduler that SGLang has no counterpart of."""


def methods_of(cls: type) -> list[str]:
    """The methods that this package defines on `cls` or on the parts it is composed of."""
    parts = [part for part in cls.__mro__ if part.__module__.startswith("echo_sglang.")]
    return [
        name for part in parts for name, value in vars(part).items() if inspect.isfunction(value)
    ]


def is_public(name: str) -> bool:
    return not name.startswith("_")


def upstream(name: str) -> Callable[..., Any]:
    """SGLang's method, even where a loaded plugin replaced the class."""
    base = next(c for c in EchoScheduler.__mro__ if c.__module__.startswith("sglang."))
    method: Callable[..., Any] = getattr(base, name)
    return method


def test_nothing_of_the_contract_is_broken() -> None:
    assert verify.broken_contract() == []


def test_a_missing_name_and_a_missing_parameter_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        verify,
        "CONTRACT",
        {
            f"{verify.SCHEDULER}.no_such_method": ("self",),
            f"{verify.SCHEDULER}.abort_request": ("self", "no_such_parameter"),
            "sglang.no_such_module.Thing": (),
        },
    )
    assert verify.broken_contract() == [
        f"{verify.SCHEDULER}.no_such_method does not exist",
        f"{verify.SCHEDULER}.abort_request has no parameter no_such_parameter",
        "sglang.no_such_module.Thing does not exist",
    ]


def test_every_override_is_in_the_contract_or_is_documented_as_echos_own() -> None:
    for name in methods_of(EchoScheduler):
        if hasattr(Scheduler, name):
            assert f"{verify.SCHEDULER}.{name}" in verify.CONTRACT, name
        elif is_public(name):
            assert name in ECHOS_OWN, name
            assert inspect.getdoc(getattr(EchoScheduler, name)), name


@pytest.mark.parametrize("mine", [EchoRadixCache, EchoFullComponent, EchoTreeCore, EchoKey])
def test_every_override_of_the_cache_is_in_the_contract(mine: type) -> None:
    theirs = mine.__mro__[1]
    overridden = [
        name
        for name, value in vars(mine).items()
        if inspect.isfunction(value) and hasattr(theirs, name) and not name.startswith("__")
    ]
    assert overridden
    for name in overridden:
        assert f"{theirs.__module__}.{theirs.__qualname__}.{name}" in verify.CONTRACT, name


def test_echos_private_methods_collide_with_none_of_sglangs_attributes() -> None:
    """An attribute that SGLang sets on the instance would shadow a method silently."""
    source = inspect.getsource(inspect.getmodule(upstream("abort_request")))  # type: ignore[arg-type]
    for name in methods_of(EchoScheduler):
        if not hasattr(Scheduler, name):
            assert f"self.{name} " not in source, name


@pytest.mark.parametrize(
    ("mine", "theirs"), [(EchoPrefillAdder, PrefillAdder), (EchoReq, Req)], ids=["adder", "req"]
)
def test_overrides_take_the_parameters_of_what_they_override(mine: type, theirs: type) -> None:
    for name in methods_of(mine):
        if name == "__init__" or not hasattr(theirs, name):
            continue
        have = list(inspect.signature(getattr(mine, name)).parameters)
        assert have == list(inspect.signature(getattr(theirs, name)).parameters), name


def test_the_admission_loop_asks_the_two_seams() -> None:
    body = inspect.getsource(upstream("_get_new_batch_prefill_raw"))
    assert "not self.has_prefill_candidates()" in body
    assert "for req in self.prefill_candidates():" in body
    assert "for req in self.waiting_queue:" not in body


def test_the_seams_mean_the_waiting_queue_unless_overridden() -> None:
    queue = [object(), object()]
    scheduler = SimpleNamespace(waiting_queue=queue)
    assert list(upstream("prefill_candidates")(scheduler)) == queue
    assert upstream("has_prefill_candidates")(scheduler)
    assert not upstream("has_prefill_candidates")(SimpleNamespace(waiting_queue=[]))


def test_a_parked_chunk_is_not_counted_as_in_flight() -> None:
    body = inspect.getsource(upstream("_get_new_batch_prefill_raw"))
    assert "if self.chunked_req is not None and self.chunked_req in can_run_set:" in body


def test_the_decision_is_taken_after_the_merge_and_before_admission() -> None:
    body = inspect.getsource(upstream("get_next_batch_to_run"))
    merge = body.index("running_batch.merge_batch(last_batch)")
    decision = body.index("self._should_defer_prefill(running_batch)")
    admission = body.index("self.get_new_batch_prefill(running_batch)")
    assert merge < decision < admission
    assert body.count("self._should_defer_prefill(") == 1


def test_the_decoding_rows_of_a_mixed_batch_are_sglangs_list_of_them() -> None:
    assert "decoding_reqs" in {field.name for field in fields(ScheduleBatch)}
    decoding, prefilled = [object(), object(), object()], object()
    rows: Any = DecodingRows(decoding)  # type: ignore[arg-type]
    assert rows == decoding
    assert all(row in rows for row in decoding)
    assert prefilled not in rows


def test_the_installed_sglang_passes() -> None:
    verify.verify_install()


def test_another_version_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify.metadata, "version", lambda _: "0.5.22")
    with pytest.raises(IncompatibleError, match=r"sglang 0\.5\.22 is installed, 0\.5\.23 is need"):
        verify.verify_install()


@pytest.mark.parametrize("name", sorted(verify.PATCHED_FILES))
def test_a_changed_patched_file_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(verify, "PATCHED_FILES", {**verify.PATCHED_FILES, name: "0" * 64})
    with pytest.raises(IncompatibleError, match=r"apply_patches\.py apply") as refusal:
        verify.verify_install()
    assert name in str(refusal.value)


def test_an_absent_patched_file_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "PATCHED_FILES", {"sglang/srt/no_such_file.py": "0" * 64})
    with pytest.raises(IncompatibleError, match="no_such_file"):
        verify.verify_install()


def test_a_broken_contract_is_refused_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "CONTRACT", {f"{verify.SCHEDULER}.no_such_method": ()})
    with pytest.raises(IncompatibleError, match="no_such_method does not exist"):
        verify.verify_install()


def test_a_scheduler_that_is_not_echos_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SCHEDULER", "sglang.srt.managers.schedule_batch.Req")
    with pytest.raises(IncompatibleError, match="plugin 'echo'"):
        verify.verify_registered()


REFUSED_FLAGS: dict[str, Any] = {
    "pp_size": 2,
    "enable_dp_attention": True,
    "attn_dp_size": 2,
    "attn_cp_size": 2,
    "dcp_size": 2,
    "enable_prefill_cp": True,
    "tokenizer_worker_num": 2,
    "smg_grpc_mode": True,
    "grpc_mode": True,
    "grpc_port": 40000,
    "use_ray": True,
    "disaggregation_mode": "prefill",
    "encoder_only": True,
    "language_only": True,
    "speculative_algorithm": "EAGLE",
    "decoupled_spec_role": "drafter",
    "enable_pdmux": True,
    "enable_hisparse": True,
    "enable_two_batch_overlap": True,
    "enable_single_batch_overlap": True,
    "elastic_ep_backend": "mooncake",
    "enable_prefill_delayer": True,
    "min_free_slots_delay": 2,
    "is_embedding": True,
    "dllm_algorithm": "LowConfidence",
    "enable_priority_scheduling": True,
    "chunked_prefill_size": -1,
}


def flags(**given: Any) -> SimpleNamespace:
    """SGLang's flags as they are by default, but for those given. KeyError if it has no such."""
    from sglang.srt.server_args import ServerArgs

    values = {name: p.default for name, p in inspect.signature(ServerArgs).parameters.items()}
    for name, value in given.items():
        assert name in values, f"SGLang has no flag {name}"
        values[name] = value
    return SimpleNamespace(**values)


def test_sglangs_defaults_with_several_ranks_and_replicas_are_taken() -> None:
    compat.check_server_args(flags(tp_size=4, dp_size=2, ep_size=4), {})


@pytest.mark.parametrize("flag", REFUSED_FLAGS)
def test_a_flag_that_echo_cannot_serve_is_refused_by_name(flag: str) -> None:
    given = flags(**{flag: REFUSED_FLAGS[flag]})
    with pytest.raises(IncompatibleError, match=r"--echo-off") as refusal:
        compat.check_server_args(given, {})
    assert str(refusal.value).startswith("--" + flag.replace("_", "-") + " ")


def test_an_emulated_server_has_one_rank() -> None:
    environment = {EMULATE_ENV: "A100-80G:Llama-3.1-8B"}
    compat.check_server_args(flags(), environment)
    with pytest.raises(IncompatibleError, match="--tp-size above 1 with --echo-emulate"):
        compat.check_server_args(flags(tp_size=2), environment)


@pytest.mark.parametrize(
    ("value", "refused"), [("1", True), ("true", True), ("0", False), ("", False)]
)
def test_the_rust_server_is_refused_however_it_is_turned_on(value: str, refused: bool) -> None:
    environment = {"SGLANG_RUST_SERVER": value}
    if not refused:
        compat.check_server_args(flags(), environment)
        return
    with pytest.raises(IncompatibleError, match="SGLANG_RUST_SERVER"):
        compat.check_server_args(flags(), environment)


MODEL: dict[str, Any] = {"is_generation": True, "dllm_config": None, "chunked_prefill_size": 64}

REFUSED_MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "does not generate": ({"is_generation": False}, False),
    "diffusion": ({"dllm_config": object()}, False),
    "Mamba": ({}, True),
    "unchunked": ({"chunked_prefill_size": None}, False),
}


@pytest.mark.parametrize("said", REFUSED_MODELS)
def test_a_model_that_echo_cannot_serve_is_refused(said: str) -> None:
    attributes, mamba = REFUSED_MODELS[said]
    tree = SimpleNamespace(supports_mamba=lambda: mamba)
    model: Any = SimpleNamespace(tree_cache=tree, **{**MODEL, **attributes})
    with pytest.raises(IncompatibleError, match=said):
        compat.check_scheduler(model, EvictionPolicy.LRU)


def test_an_ordinary_model_is_taken() -> None:
    tree = SimpleNamespace(supports_mamba=lambda: False)
    model: Any = SimpleNamespace(tree_cache=tree, **MODEL)
    compat.check_scheduler(model, EvictionPolicy.LRU)


def test_value_eviction_on_a_cache_that_is_not_echos_is_noticed() -> None:
    tree = SimpleNamespace(supports_mamba=lambda: False)
    flags = SimpleNamespace(disable_radix_cache=False)
    model: Any = SimpleNamespace(tree_cache=tree, server_args=flags, **MODEL)
    with pytest.raises(IncompatibleError, match="--echo-eviction value on a SimpleNamespace"):
        compat.check_scheduler(model, EvictionPolicy.VALUE)
    flags.disable_radix_cache = True  # nothing is cached, so nothing is evicted
    compat.check_scheduler(model, EvictionPolicy.VALUE)


@pytest.mark.slow
def test_the_launcher_refuses_before_it_loads_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    command = [sys.executable, "-m", "echo_sglang.launch_server", "--model-path", str(tmp_path)]
    ended = subprocess.run([*command, "--pp-size", "2"], capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr[-2000:]
    assert ended.stderr.splitlines()[-1].startswith("echo_sglang: --pp-size above 1")
    assert "--echo-off" in ended.stderr.splitlines()[-1]


def test_a_request_arrived_when_the_api_server_got_it() -> None:
    """Through the pickle that takes it to the scheduler; now, if nobody noted it."""
    noted = APIServerReqTimeStats()
    noted.set_created_time(90.0)
    for sent in (noted, DPControllerReqTimeStats.new_from_obj(noted)):
        received = SchedulerReqTimeStats.new_from_obj(pickle.loads(pickle.dumps(sent)))
        # the clocks of two processes are put beside the wall clock, which may be corrected
        assert arrived_s(received) == pytest.approx(90.0, abs=0.1)
    assert arrived_s(SchedulerReqTimeStats()) == 100.0
    noted.set_created_time(1000.0)
    assert arrived_s(SchedulerReqTimeStats.new_from_obj(noted)) == 100.0


def arrived_s(stats: SchedulerReqTimeStats) -> float:
    """What a scheduler whose clock stands at 100 s makes of it."""
    scheduler = SimpleNamespace(echo_clock=lambda: 100.0)
    return EchoScheduler.arrived_s(scheduler, SimpleNamespace(time_stats=stats))  # type: ignore[arg-type]
