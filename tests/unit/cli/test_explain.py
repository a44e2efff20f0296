"""echo-sglang explain on logs as a server dumps them, good and bad."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from echo_sglang.cli.main import app
from echo_sglang.policy.coscheduler import decide
from echo_sglang.policy.decision_log import Decision, DecisionLog
from tests.unit.policy.builders import (
    MODEL,
    SETTINGS,
    candidate,
    online,
    row,
    snapshot,
    waiting,
)

NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC).timestamp()


def lines(*, timed: bool = True) -> list[str]:
    """Three minutes from noon, two decisions a second."""
    log = DecisionLog(size=1000)
    for step in range(360):
        now_s = 10.0 + 0.5 * step
        state = snapshot(
            step=step,
            now_s=now_s,
            online=online(2, due_in_s=0.5, now_s=now_s),
            offline_rows=(row("r-1", output=1 + step),) if step > 3 else (),
            candidates=(candidate("r-2", tokens=900),),
            waiting_online=(waiting("w", tokens=90, due_in_s=0.5 * step),) if step == 200 else (),
            pooled=5,
        )
        log.append(Decision(state, MODEL, decide(state, MODEL, SETTINGS)))
    return list(log.lines(SETTINGS, unix_offset_s=NOON - 10.0 if timed else None))


@pytest.fixture(name="log", scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logs") / "decisions.jsonl"
    path.write_text("\n".join(lines()) + "\n", encoding="utf-8")
    return path


def explain(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def test_a_request_is_told_in_words(log: Path) -> None:
    told = explain(log, "--rid", "r-1")
    assert told.exit_code == 0
    assert told.stdout.startswith("Request r-1: seen from 12:00:02.000 for 177.500 s")
    assert "decodes (iteration 4 to 359, 356 of them)" in told.stdout
    assert "at its end: 360 tokens produced" in told.stdout


def test_a_minute_is_told_by_time_of_day_as_by_seconds(log: Path) -> None:
    by_day = explain(log, "--from", "12:01", "--to", "12:02:00", "--json")
    by_date = explain(log, "--from", "2026-03-01T12:01", "--to", "2026-03-01T13:02+01:00", "--json")
    by_seconds = explain(log, "--from", "60", "--to", "120", "--json")
    assert by_day.stdout == by_date.stdout == by_seconds.stdout
    found = json.loads(by_day.stdout)
    assert found["decisions"] == 121
    assert found["start"] == "2026-03-01T12:01:00.000+00:00"
    assert found["most_online_waiting"] == 1
    assert sum(part["decisions"] for part in found["intervals"]) == 121
    assert len(found["intervals"]) == 12


def test_a_minute_is_told_as_a_table(log: Path) -> None:
    told = explain(log, "--from", "12:01", "--to", "12:02")
    assert told.exit_code == 0
    assert "Why iterations were as they were" in told.stdout
    assert "As time went by" in told.stdout
    assert "12:01:55" in told.stdout


def test_a_story_as_json_has_no_words_around_it(log: Path) -> None:
    found = json.loads(explain(log, "--rid", "w", "--json").stdout)
    assert found["rid"] == "w"
    assert [part["phase"] for part in found["parts"]] == ["online prefill"]
    assert found["parts"][0]["start_s"] == 100.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rid", "nobody"], "is in none of the 360 decisions"),
        (["--from", "noon"], "expected HH:MM"),
        (["--from", "nan"], "finite seconds"),
        (["--from", "25:00"], "expected HH:MM"),
        (["--from", "100", "--to", "50"], "is before --from 100"),
        (["--from", "1000"], "it covers 179.5 s"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(
    log: Path, arguments: list[str], said: str
) -> None:
    told = explain(log, *arguments)
    assert told.exit_code == 2
    assert said in told.stderr
    assert told.stdout == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "decision log is empty"),
        ("not json\n", "line 1 is no JSON"),
        ("[" * 100_000 + "\n", "line 1 is no JSON"),
        ("{}\n", "line 1: KeyError"),
        ('{"schema": 1}\n', "schema 1, written by another release"),
        ("\n".join(lines()[:1]) + "\n", "holds no decision"),
        ("\n".join(lines()[:3])[:-40], "line 3 is cut off; dump the log again"),
        ("\n".join([lines()[0], '{"snapshot": {}}']) + "\n", "line 2: KeyError"),
    ],
)
def test_a_file_that_is_no_whole_decision_log_is_refused(
    tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content, encoding="utf-8")
    told = explain(path)
    assert told.exit_code == 2
    assert said in told.stderr
    assert str(path) in told.stderr


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    told = explain(tmp_path / "none.jsonl")
    assert told.exit_code == 2
    assert "cannot be read: No such file" in told.stderr


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.jsonl"
    path.write_bytes(b"\xff\xfe\x00\x01")
    assert explain(path).exit_code == 2


def test_a_log_without_the_time_of_day_is_told_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text("\n".join(lines(timed=False)) + "\n", encoding="utf-8")
    assert "+60.000 s" in explain(path, "--from", "60", "--to", "70").stdout
    refused = explain(path, "--from", "12:01")
    assert refused.exit_code == 2
    assert "give seconds since its first decision" in refused.stderr
