"""The arithmetic and the inputs of the batch service's experiment."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import httpx
import pytest

from echo_sglang.service.validation import Validation
from eval.batch_service import Accepted, add_command, overhead_of, plan_from, targets
from eval.harness import batches
from eval.harness.batches import (
    BatchClient,
    BatchRunError,
    ProcessCost,
    Questions,
    write_lines,
    write_questions,
)


def test_overhead_is_the_median_over_pairs_of_the_same_requests() -> None:
    # Pairs of 1.02, 1.04 and, disturbed, 3.0.
    assert overhead_of([10.0, 20.0, 10.0], [10.2, 20.8, 30.0]) == pytest.approx(0.04)
    assert overhead_of([10.0], [9.0]) == pytest.approx(-0.1)
    with pytest.raises(ValueError, match="shorter"):
        overhead_of([10.0, 10.0], [10.0])


def test_lines_per_second_count_the_upload_only_where_they_say_so() -> None:
    row = Accepted(
        lines=1_000,
        size_bytes=4_000_000,
        upload_s=1.5,
        upload_cpu_s=0.75,
        validate_s=0.5,
        validate_cpu_s=0.25,
        extra_rss_bytes=3_000_000,
    ).row()
    assert row == {
        "megabytes": 4.0,
        "validated_lines_per_s": 2_000.0,
        "validated_lines_per_cpu_s": 4_000.0,
        "accepted_lines_per_s": 500.0,
        "accepted_lines_per_cpu_s": 1_000.0,
        "extra_rss_megabytes": 3.0,
    }


def test_a_target_is_judged_only_where_it_was_measured() -> None:
    assert targets({}) == {}
    found = {
        "accept": {"large": {"validated_lines_per_s": 19_999.0}},
        "overhead": {"overhead": 0.05},
        "restart": {"resumed_after_s": 5.0},
    }
    assert targets(found) == {
        "large lines validated per s": False,
        "overhead": True,
        "resumed in time": False,
    }


def test_a_written_file_is_a_batch_of_lines_of_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    size = write_lines(path, count=200, line_bytes=400, seed=1)
    assert 198 * 400 <= size <= 200 * 400
    validation = Validation(batches.COMPLETIONS)
    assert len(list(validation.lines([path.read_bytes()]))) == 200
    assert validation.errors == []


def test_a_batch_asks_what_is_asked_directly_and_no_two_prompts_begin_alike(
    tmp_path: Path,
) -> None:
    questions = Questions(count=50, prompt_words=20, output_tokens=4, seed=3)
    path = tmp_path / "in.jsonl"
    write_questions(questions, path)
    written = [json.loads(line)["body"] for line in path.read_text().splitlines()]
    assert written == list(questions.bodies())
    assert len({body["prompt"].split()[0] for body in written}) == 50
    other = Questions(count=50, prompt_words=20, output_tokens=4, seed=4)
    assert next(other.bodies())["prompt"] != written[0]["prompt"]


def test_a_process_is_charged_with_what_it_spends_from_now_on() -> None:
    old = bytearray(os.urandom(1)) * (64 << 20)
    del old  # a peak before the measurement is none of it
    cost = ProcessCost(os.getpid())
    taken = bytearray(b"x") * (32 << 20)
    assert 30 << 20 <= cost.extra_rss_bytes <= 60 << 20
    assert cost.cpu_s >= 0.0 and len(taken) == 32 << 20


def test_a_batch_that_ends_otherwise_is_an_error_not_a_figure() -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"status": "failed", "errors": ["line 3"]})

    client = BatchClient("http://server", transport=httpx.MockTransport(answer))
    with pytest.raises(BatchRunError, match="line 3"):
        client.wait("batch_1", lambda batch: batch["status"] == "completed")


@pytest.mark.parametrize(
    ("flags", "message"), [("--parts accept,nothing", "nothing: there are"), ("--pairs 0", "pairs")]
)
def test_what_cannot_be_run_is_refused_by_name(flags: str, message: str) -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    with pytest.raises(ValueError, match=message):
        plan_from(parser.parse_args(["batches", *flags.split()]))
    assert plan_from(parser.parse_args(["batches"])).lines == 50_000
