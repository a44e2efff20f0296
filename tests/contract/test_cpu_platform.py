"""The CPU platform inside the installed SGLang: discovery, refusals, and the real model's tokens.

SGLang settles its platform once per process, so whatever depends on it runs in a process of its
own. Run as a script this file is such a process: it reads engine arguments, generates, and
prints token ids.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from echo_sglang.platform.bf16 import multiplies_bf16
from eval.harness.server import quick_start

REPOSITORY = Path(__file__).resolve().parents[2]
LONG = {"chunked_prefill_size": 64, "max_prefill_tokens": 64}
ANSWER = "answer: "

DISCOVER = """
import json
from sglang.srt.platforms import current_platform
from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES
print("answer: " + json.dumps([type(current_platform).__name__, ATTENTION_BACKEND_CHOICES]))
"""

RESOLVE = """
import json, sys
from sglang.srt.arg_groups.overrides import resolved_view
from sglang.srt.server_args import ServerArgs
arguments = ServerArgs(**json.loads(sys.argv[1]))
arguments.resolve_once()
view = resolved_view(arguments)
print("answer: " + json.dumps([view.device, view.attention_backend, view.dtype]))
"""


def run_python(
    *command: str, platform: str | None, variables: Mapping[str, str] | None = None
) -> Any:
    """Run a Python that prints a line "answer: <JSON>", and return the JSON's value."""
    environment = {name: value for name, value in os.environ.items() if name != "SGLANG_PLATFORM"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(REPOSITORY), environment.get("PYTHONPATH", "")]
    ).rstrip(os.pathsep)
    environment |= variables or {}
    if platform is not None:
        environment["SGLANG_PLATFORM"] = platform
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    assert answers, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(answers[-1].removeprefix(ANSWER))


def model_path() -> str:
    path = os.environ.get("ECHO_TEST_MODEL", "")
    if not (path and Path(path).is_dir()):
        pytest.skip("ECHO_TEST_MODEL names no folder; run `make model`")
    return path


def test_unasked_the_installed_platform_changes_nothing():
    name, choices = run_python("-c", DISCOVER, platform=None)
    assert name != "EchoCpuPlatform"
    assert "echo_cpu" not in choices


def test_asked_for_by_name_the_platform_and_its_backend_are_there():
    name, choices = run_python("-c", DISCOVER, platform="echo_cpu")
    assert name == "EchoCpuPlatform"
    assert choices.count("echo_cpu") == 1


@pytest.mark.parametrize(
    "arguments, backend",
    [
        ({}, "echo_cpu"),
        ({"device": "cpu"}, "echo_cpu"),
        ({"attention_backend": "torch_native"}, "torch_native"),
    ],
)
def test_its_backend_is_the_default_and_a_named_one_is_kept(arguments, backend):
    arguments = {"model_path": model_path(), **arguments}
    found = run_python("-c", RESOLVE, json.dumps(arguments), platform="echo_cpu")
    assert found[:2] == ["cpu", backend]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of another processor")
@pytest.mark.parametrize("said, served", [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_a_bf16_model_is_served_in_float32_where_bf16_would_be_a_loop(monkeypatch, said, served):
    # torch's own way to say that there are no wider instructions, whatever this machine has.
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    arguments = {"model_path": model_path(), "dtype": said}
    found = run_python("-c", RESOLVE, json.dumps(arguments), platform="echo_cpu")
    assert found[2] == served


@pytest.mark.parametrize(
    "capability, machine, multiplies",
    [
        ("AVX2", "x86_64", False),
        ("DEFAULT", "x86_64", False),
        ("AVX512", "x86_64", True),
        ("DEFAULT", "aarch64", True),
    ],
)
def test_which_cpus_multiply_bf16(capability, machine, multiplies):
    assert multiplies_bf16(capability, machine) is multiplies


@pytest.fixture(scope="module")
def attention():
    import sglang.srt.utils  # noqa: F401  (before sglang.srt.platforms, which it imports back)

    return pytest.importorskip("echo_sglang.platform.cpu_attention")


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ({"is_cross_attention": True}, "layer 3 attends to an encoder"),
        ({"attn_type": "ENCODER_ONLY"}, "layer 3 has attention type encoder_only"),
        ({"logit_cap": 50.0}, "layer 3 caps its logits at 50.0"),
    ],
)
def test_a_layer_it_cannot_serve_is_refused_by_name(attention, arguments, problem):
    from echo_sglang.errors import IncompatibleError

    if "attn_type" in arguments:
        arguments = {"attn_type": attention.AttentionType[arguments["attn_type"]]}
    plain = attention.RadixAttention(4, 8, 1.0, 2, layer_id=2)
    odd = attention.RadixAttention(4, 8, 1.0, 2, layer_id=3, **arguments)
    attention.check_layers([plain])
    with pytest.raises(IncompatibleError, match=f"{problem}.*--attention-backend torch_native"):
        attention.check_layers([plain, odd])


def test_latent_attention_is_refused(attention):
    from echo_sglang.errors import IncompatibleError

    runner = SimpleNamespace(req_to_token_pool=None, token_to_kv_pool=None, use_mla_backend=True)
    with pytest.raises(IncompatibleError, match="latent"):
        attention.CpuAttentionBackend(runner)


@pytest.mark.parametrize("mode", ["TARGET_VERIFY", "DRAFT_EXTEND_V2", "DLLM_EXTEND"])
def test_modes_of_speculation_and_diffusion_are_refused(attention, mode):
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    from echo_sglang.errors import IncompatibleError

    with pytest.raises(IncompatibleError, match=mode):
        attention.rows_of(SimpleNamespace(forward_mode=ForwardMode[mode], seq_lens=_NoRows()))


class _NoRows:
    def tolist(self) -> list[int]:
        return []


ENGINES: dict[str, dict[str, Any]] = {
    "torch_native": {"attention_backend": "torch_native", **LONG},
    "whole prompts": {},
    "chunks": LONG,
    "mixed chunks": {**LONG, "enable_mixed_chunk": True},
    "mixed chunks without overlap": {
        **LONG,
        "enable_mixed_chunk": True,
        "disable_overlap_schedule": True,
    },
    "pages of 16": {**LONG, "enable_mixed_chunk": True, "page_size": 16},
}


@pytest.fixture(scope="module")
def generated() -> dict[str, dict[str, Any]]:
    """By name: what every engine made of the same batch, one engine after the other."""
    path = model_path()
    common = {
        "model_path": path,
        "dtype": "float32",
        "max_total_tokens": 6000,
        "max_running_requests": 8,
    }
    engines = [common | arguments for arguments in ENGINES.values()]
    answers = run_python(
        __file__, json.dumps(engines), platform="echo_cpu", variables=quick_start(Path(path))
    )
    return dict(zip(ENGINES, answers, strict=True))


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENGINES if name != "torch_native"])
def test_greedy_tokens_are_those_of_torch_native(
    generated: dict[str, dict[str, Any]], name: str
) -> None:
    ours, reference = generated[name], generated["torch_native"]
    assert ours["backend"] == "echo_cpu"
    assert reference["backend"] == "torch_native"
    assert ours["tokens"] == reference["tokens"]
    assert min(ours["cached_tokens"][-2:]) >= 128


def main() -> None:
    """Start the engines that the command line describes, one after the other."""
    answers = [answers_of(arguments) for arguments in json.loads(sys.argv[1])]
    print(ANSWER + json.dumps(answers), flush=True)


def answers_of(engine_arguments: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens of a batch with shared prefixes, twice, the second time with them cached."""
    import sglang

    engine = sglang.Engine(**engine_arguments, log_level="error")
    words = (REPOSITORY / "LICENSE").read_text(encoding="utf-8").split()
    document = " ".join(words[:220])
    prompts = [
        "The capital of France is",
        "def fibonacci(n):",
        " ".join(words[500:560]),
        " ".join(words[700:920]),
        f"{document} In short, this text",
        f"{document} The word license",
    ]
    sampling = [
        {"temperature": 0, "max_new_tokens": 6 + 4 * index} for index in range(len(prompts))
    ]
    answers = [answer for _ in range(2) for answer in engine.generate(prompts, sampling)]
    backend = engine.get_server_info()["attention_backend"]
    engine.shutdown()
    return {
        "backend": backend,
        "tokens": [answer["output_ids"] for answer in answers],
        "cached_tokens": [answer["meta_info"]["cached_tokens"] for answer in answers],
    }


if __name__ == "__main__":
    main()


def test_forward_passes_are_timed_without_device_events(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.observability.forward_pass_metrics import FpmTiming
    from sglang.srt.utils import device_timer as upstream

    from echo_sglang.platform import device_timer

    monkeypatch.setattr(upstream, "_TimingInterval", upstream._TimingInterval)
    device_timer.install()
    reported: list[dict[str, object]] = []
    spans: list[float | None] = []
    timer = upstream.DeviceTimer(reporter=lambda **one: reported.append(one))
    timing = FpmTiming()
    with timer.capture(timing), timer.wrap(metadata={"category": "decode"}):
        assert timer.is_active()
    timing.seal()
    timing.when_ready(spans.append)
    assert not timer.is_active()
    assert [one["category"] for one in reported] == ["decode"]
    assert spans == [reported[0]["t"]] and spans[0] is not None and spans[0] > 0
