from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from echo_sglang.errors import WorkloadError
from echo_sglang.sim.batch_jobs import BatchFile, LengthsFile
from echo_sglang.sim.workload import prompt_ids

LENGTHS = "num_prefill_tokens,num_decode_tokens,pd_ratio\n3772,54,70\n2015,156,13\n900,3,300\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "jobs"
    path.write_text(text, encoding="utf-8")
    return path


def line(custom_id: str, **body: Any) -> str:
    return json.dumps({"custom_id": custom_id, "body": body}) + "\n"


def test_lengths_are_read_in_order_and_share_nothing(tmp_path: Path) -> None:
    requests = LengthsFile(path=written(tmp_path, LENGTHS)).requests(1)
    assert [(r.prompt_tokens, r.output_tokens) for r in requests] == [
        (3772, 54),
        (2015, 156),
        (900, 3),
    ]
    assert len({r.prompt for r in requests}) == 3
    assert all(r.is_offline for r in requests)


def test_a_limit_draws_rows_by_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path, LENGTHS)
    drawn = {LengthsFile(path=path, limit=1).requests(seed)[0].rid for seed in range(20)}
    assert drawn == {"job-2", "job-3", "job-4"}
    with pytest.raises(WorkloadError, match="holds 3 requests, 4 were asked for"):
        LengthsFile(path=path, limit=4).requests(1)


def test_batch_lines_share_their_common_beginning(tmp_path: Path) -> None:
    document = "A long document. " * 40
    text = line("a", prompt=document + "Who?", max_tokens=30) + line(
        "b", prompt=document + "Why?", max_completion_tokens=8
    )
    a, b = BatchFile(path=written(tmp_path, text), answer_share=0.5).requests(1)
    # 680 characters of document are 170 tokens, the question is one more.
    assert a.prompt_tokens == b.prompt_tokens == 171
    assert prompt_ids(a.prompt)[:170] == prompt_ids(b.prompt)[:170]
    assert prompt_ids(a.prompt)[170] != prompt_ids(b.prompt)[170]
    assert (a.output_tokens, a.allowed_tokens) == (15, 30)
    assert (b.output_tokens, b.allowed_tokens) == (4, 8)


def test_chat_messages_are_a_prompt_too(tmp_path: Path) -> None:
    text = line("a", messages=[{"role": "user", "content": "Hello there"}])
    (request,) = BatchFile(path=written(tmp_path, text)).requests(1)
    assert request.prompt_tokens > 3 and request.allowed_tokens == 256


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\n", "no requests"),
        ('{"body": {}}\n', "custom_id and body"),
        (line("a", max_tokens=3), "messages .* or prompt"),
        (line("a", prompt="x", max_tokens=0), "max_tokens is 0"),
        (line("a", prompt="x", max_tokens=True), "max_tokens is True"),
    ],
)
def test_a_broken_batch_file_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        BatchFile(path=written(tmp_path, text)).requests(1)


def test_answers_longer_than_allowed_are_refused() -> None:
    with pytest.raises(WorkloadError, match="answer_share"):
        BatchFile(path=Path("x"), answer_share=1.5)
