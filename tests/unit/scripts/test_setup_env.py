"""The set-up: what its folders' names depend on, how a step fails, and that the pins agree."""

import re
import sys
from pathlib import Path

import pytest
import setup_env
from setup_env import (
    PROJECT,
    REQUIREMENTS,
    SetupError,
    cache_root,
    digest,
    files_hash,
    main,
    pins,
    run,
    series_files,
    stamped,
)

PIN = re.compile(r"[A-Za-z0-9._-]+(\[[a-z0-9,]+\])?==[\w.]+")
CLIENT_PINS = sorted((PROJECT / "requirements" / "clients").glob("*.txt"))


@pytest.mark.parametrize("path", [REQUIREMENTS, *CLIENT_PINS], ids=lambda path: path.stem)
def test_every_requirement_is_pinned_exactly(path: Path) -> None:
    lines = pins(path.read_text())
    assert lines
    assert [line for line in lines if not PIN.fullmatch(line)] == []


def test_the_environment_and_the_package_pin_the_same_sglang() -> None:
    (pinned,) = [line for line in pins(REQUIREMENTS.read_text()) if line.startswith("sglang")]
    assert f'"{pinned}"' in (PROJECT / "setup.py").read_text()


def test_comments_blanks_and_order_do_not_make_a_new_environment() -> None:
    assert pins("# tools\nb==2  # why\n\na==1\n") == pins("a==1\nb==2") == ["a==1", "b==2"]


def test_a_digest_tells_apart_where_its_parts_end() -> None:
    assert digest([b"ab", b"c"]) != digest([b"a", b"bc"])


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ECHO_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert cache_root() == tmp_path / "elsewhere"


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    (tmp_path / "pin.json").write_text("{}")
    (tmp_path / "series").write_text("0001-a.patch\n")
    (tmp_path / "0001-a.patch").write_text("a")
    (tmp_path / "README.md").write_text("about")
    return tmp_path


@pytest.mark.parametrize("name", ["pin.json", "series", "0001-a.patch", "0002-b.patch"])
def test_a_changed_patch_set_asks_for_a_new_copy(patches: Path, name: str) -> None:
    before = files_hash(series_files(patches))
    (patches / name).write_text("changed")
    assert files_hash(series_files(patches)) != before


def test_a_changed_readme_asks_for_nothing(patches: Path) -> None:
    before = files_hash(series_files(patches))
    (patches / "README.md").write_text("changed")
    assert files_hash(series_files(patches)) == before


def test_a_folder_without_its_stamp_is_not_complete(tmp_path: Path) -> None:
    assert not stamped(tmp_path, "wanted")
    (tmp_path / setup_env.STAMP).write_text("older")
    assert not stamped(tmp_path, "wanted")
    (tmp_path / setup_env.STAMP).write_text("wanted")
    assert stamped(tmp_path, "wanted")


def test_pips_noise_is_dropped_and_its_errors_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk = "print('WARNING: Location x is ignored'); print('ERROR: no such version')"
    run([sys.executable, "-c", talk])
    assert capsys.readouterr().err == "ERROR: no such version\n"


def test_a_command_that_fails_is_named_with_its_exit_code() -> None:
    with pytest.raises(SetupError, match=r"exit code 3 from: .* -c raise SystemExit\(3\)"):
        run([sys.executable, "-c", "raise SystemExit(3)"])


def test_another_python_is_refused_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup_env, "SUPPORTED_PYTHON", (3, 99))
    assert main(["venvs"]) == 1
    assert "make PYTHON=/path/to/python3.99 setup" in capsys.readouterr().err


def test_too_little_disk_is_refused_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("ECHO_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(setup_env, "ENVIRONMENT_BYTES", 10**18)
    assert main(["venvs"]) == 1
    assert "set ECHO_CACHE_DIR to a larger disk" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_the_path_of_the_stock_python_is_printed_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["path", "stock-python"]) == 0
    assert capsys.readouterr().out == f"{PROJECT / '.venv-stock' / 'bin' / 'python'}\n"
