"""echo-sglang batch against the batch API on a loopback port."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from echo_sglang.cli.main import app
from tests.unit.service.http_kit import OpenGate, line, lines, rows, served

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, OpenGate]]:
    with served(tmp_path_factory.mktemp("data")) as found:
        yield found


@pytest.fixture
def url(server: tuple[str, OpenGate]) -> str:
    return server[0]


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["batch", *map(str, words)])


def file_of(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    return path


def submitted(url: str, path: Path, *options: str) -> Result:
    return run("submit", path, "--url", url, "--json", "--watch", "--poll", "0.1", *options)


def test_a_file_goes_in_and_its_answers_come_out(url: str, tmp_path: Path) -> None:
    done = submitted(url, file_of(tmp_path, lines("a", "b")), "--metadata", "k=v")
    assert done.exit_code == 0, done.output
    batch = json.loads(done.stdout)
    assert batch["status"] == "completed" and batch["metadata"] == {"k": "v"}
    out = tmp_path / "out.jsonl"
    assert run("results", batch["id"], "--url", url, "-o", out).exit_code == 0
    assert set(rows(out.read_text())) == {"a", "b"}
    second = run("results", batch["id"], "--url", url, "--offset", "1")
    assert second.stdout == out.read_text().splitlines(keepends=True)[1]
    assert run("results", batch["id"], "--url", url, "--errors").stdout == ""
    status = run("status", batch["id"], "--url", url)
    assert "2 completed, 0 failed, of 2" in status.stdout
    listed = json.loads(run("list", "--url", url, "--json").stdout)["data"]
    assert batch["id"] in [each["id"] for each in listed]


def test_failed_lines_end_watching_with_one_and_can_be_retried(url: str, tmp_path: Path) -> None:
    done = submitted(url, file_of(tmp_path, lines("a") + line("b", status=400)))
    assert done.exit_code == 1
    batch_id = json.loads(done.stdout)["id"]
    again = json.loads(run("retry", batch_id, "--url", url, "--json").stdout)
    assert again["id"] != batch_id and again["metadata"]["retry_of"] == batch_id
    assert run("watch", again["id"], "--url", url, "--poll", "0.1").exit_code == 1


def test_pause_resume_and_cancel_say_what_became_of_the_batch(
    server: tuple[str, OpenGate], tmp_path: Path
) -> None:
    url, engine = server
    engine.open = False
    path = file_of(tmp_path, lines("a", "b", held=True))
    batch_id = json.loads(run("submit", path, "--url", url, "--json").stdout)["id"]
    assert "paused" in run("pause", batch_id, "--url", url).stdout
    assert "paused" not in run("resume", batch_id, "--url", url).stdout
    assert run("cancel", batch_id, "--url", url).exit_code == 0
    engine.open = True
    ended = run("watch", batch_id, "--url", url, "--poll", "0.1", "--json")
    assert ended.exit_code == 1 and json.loads(ended.stdout)["status"] == "cancelled"
    refused = run("cancel", batch_id, "--url", url)
    assert refused.exit_code == 2 and "409" in refused.output


@pytest.mark.parametrize("command", ["validate", "submit"])
def test_a_file_that_is_no_batch_is_refused_before_any_server(tmp_path: Path, command: str) -> None:
    path = file_of(tmp_path, lines("a", "a") + b"bad\n")
    refused = run(command, path)
    assert refused.exit_code == 1
    assert f"{path}:2: duplicate_custom_id" in refused.output
    assert f"{path}:3: invalid_json_line" in refused.output
    found = json.loads(run(command, path, "--json").stdout)
    assert not found["valid"] and [error["line"] for error in found["errors"]] == [2, 3]


def test_a_good_file_is_described_without_a_server(tmp_path: Path) -> None:
    path = file_of(tmp_path, lines("a", "b"))
    assert "2 lines for /v1/chat/completions, model m" in run("validate", path).stdout
    other = run("validate", path, "--endpoint", "/v1/completions")
    assert other.exit_code == 1 and "url_mismatch" in other.output


def test_a_server_that_is_not_there_is_exit_code_three(tmp_path: Path) -> None:
    for words in (("status", "batch_x"), ("submit", file_of(tmp_path, lines("a")))):
        absent = run(*words, "--url", NOBODY)
        assert absent.exit_code == 3 and "does not answer" in absent.output


def test_what_is_not_there_is_exit_code_two(url: str, tmp_path: Path) -> None:
    assert run("status", "batch_x", "--url", url).exit_code == 2
    assert run("submit", tmp_path / "none.jsonl", "--url", url).exit_code == 2
    path = file_of(tmp_path, lines("a"))
    assert run("submit", path, "--url", url, "--window", "soon").exit_code == 2
    assert run("submit", path, "--url", url, "--metadata", "novalue").exit_code == 2
