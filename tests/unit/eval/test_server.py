from __future__ import annotations

from pathlib import Path

import pytest

from eval.harness.server import (
    REPOSITORY,
    Server,
    ServerError,
    ServerSpec,
    default_model_path,
    quick_start,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_the_command_names_model_port_and_flags(model: Path) -> None:
    spec = ServerSpec(module="m.n", model_path=model, flags=("--x", "1"), python="py")
    command = spec.command(31001)
    assert command[:3] == ["py", "-m", "m.n"]
    assert command[-4:] == ["--port", "31001", "--x", "1"]


def test_the_environment_selects_the_platform_and_keeps_the_callers_thread_count(
    model: Path,
) -> None:
    spec = ServerSpec(module="m", model_path=model, flags=(), env={"A": "1"})
    found = spec.environment({"OMP_NUM_THREADS": "5", "PYTHONPATH": "elsewhere"})
    assert found["SGLANG_PLATFORM"] == "echo_cpu"
    assert (found["OMP_NUM_THREADS"], found["A"]) == ("5", "1")
    assert found["GOMP_SPINCOUNT"] == "5000"
    assert spec.environment({"GOMP_SPINCOUNT": "7"})["GOMP_SPINCOUNT"] == "7"
    assert found["PYTHONPATH"].startswith(str(REPOSITORY))
    assert found["PYTHONPATH"].endswith("elsewhere")


def test_a_server_of_a_plain_llama_imports_no_other_model(model: Path) -> None:
    assert quick_start(model) == {}
    assert quick_start(model / "none") == {}
    (model / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}')
    assert quick_start(model) == {}
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    left_out = quick_start(model)["SGLANG_DISABLED_MODEL_ARCHS"].split(",")
    assert "llama" not in left_out
    assert {"qwen3", "gemma3_causal", "deepseek_v2"} <= set(left_out)


def test_a_missing_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    spec = ServerSpec(module="m", model_path=tmp_path / "none", flags=())
    with pytest.raises(ServerError, match="ECHO_TEST_MODEL"):
        Server(spec, log=tmp_path / "log")


def test_a_server_that_dies_at_start_is_reported_with_the_end_of_its_log(
    model: Path, tmp_path: Path
) -> None:
    spec = ServerSpec(module="no_such_module_here", model_path=model, flags=())
    with pytest.raises(ServerError, match="No module named no_such_module_here"):
        Server(spec, log=tmp_path / "log").__enter__()


def test_a_server_that_ends_by_itself_is_not_taken_for_a_healthy_one(
    model: Path, tmp_path: Path
) -> None:
    # The interactive interpreter ends at once with code 0, because its input is closed.
    server = Server(ServerSpec(module="code", model_path=model, flags=()), log=tmp_path / "log")
    with pytest.raises(ServerError, match="ended with code"):
        server.__enter__()


def test_the_model_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHO_TEST_MODEL", "/models/small")
    assert default_model_path() == Path("/models/small")
    monkeypatch.delenv("ECHO_TEST_MODEL")
    assert default_model_path() == REPOSITORY / ".venv" / "model"
