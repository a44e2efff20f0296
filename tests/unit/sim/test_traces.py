from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from echo_sglang.errors import WorkloadError
from echo_sglang.sim.traces import AzureTrace, MooncakeTrace, Part, ServeGenRates
from echo_sglang.sim.workload import merge, prompt_ids

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:47.0000000,10,1
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text, encoding="utf-8")
    return path


def shared(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} is not beside this project")
    return path


def mooncake(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_azure_times_count_from_the_first_request(tmp_path: Path) -> None:
    requests = AzureTrace(path=written(tmp_path, AZURE)).requests(1)
    assert [round(r.arrival_s, 6) for r in requests] == [0.0, 4.314579, 60.31941]
    assert [(r.prompt_tokens, r.output_tokens) for r in requests] == [
        (374, 44),
        (396, 109),
        (10, 1),
    ]


def test_a_window_of_a_trace_starts_at_second_zero(tmp_path: Path) -> None:
    part = Part(start_s=4.0, end_s=60.0)
    requests = AzureTrace(path=written(tmp_path, AZURE), part=part).requests(1)
    assert [round(r.arrival_s, 6) for r in requests] == [0.314579]


def test_the_share_kept_of_the_real_trace_is_the_share_asked_for() -> None:
    path = shared("azure_llm_2023/AzureLLMInferenceTrace_conv.csv")
    ten_minutes = Part(start_s=600, end_s=1200)
    everything = AzureTrace(path=path, part=ten_minutes).requests(1)
    kept = AzureTrace(path=path, part=Part(start_s=600, end_s=1200, keep=0.6)).requests(1)
    assert abs(len(kept) / len(everything) - 0.6) < 0.03
    assert {r.arrival_s for r in kept} < {r.arrival_s for r in everything}
    assert all(0 <= r.arrival_s < 600 for r in everything)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("TIMESTAMP,ContextTokens\n", "lacks column GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        (AZURE + "2023-11-16 18:15:50.0,5,5\n", "sort them by time"),
        (AZURE + "yesterday,5,5\n", "line 5: TIMESTAMP 'yesterday'"),
        (AZURE + "2023-11-16 18:17:40.0,five,5\n", "line 5: ContextTokens is 'five'"),
        (AZURE + "2023-11-16 18:17:40.0,5,0\n", "line 5: GeneratedTokens is '0'"),
    ],
)
def test_a_broken_azure_trace_is_refused_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(WorkloadError, match=said):
        AzureTrace(path=written(tmp_path, text)).requests(1)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(WorkloadError, match=r"nowhere\.csv cannot be read"):
        AzureTrace(path=Path("nowhere.csv")).requests(1)


def test_an_empty_window_is_an_empty_workload(tmp_path: Path) -> None:
    trace = AzureTrace(path=written(tmp_path, AZURE), part=Part(start_s=7.0, end_s=8.0))
    with pytest.raises(WorkloadError, match="empty"):
        merge(trace.requests(1))


def test_mooncake_blocks_become_shared_prefixes(tmp_path: Path) -> None:
    text = mooncake(
        {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]},
        {"timestamp": 500, "input_length": 600, "output_length": 5, "hash_ids": [0, 2]},
        {"timestamp": 900, "input_length": 1024, "output_length": 0, "hash_ids": [0, 1]},
    )
    first, second, third = MooncakeTrace(path=written(tmp_path, text)).requests(4)
    assert [r.arrival_s for r in (first, second, third)] == [0.0, 0.5, 0.9]
    assert [r.prompt_tokens for r in (first, second, third)] == [1000, 600, 1024]
    assert prompt_ids(first.prompt)[:512] == prompt_ids(second.prompt)[:512]
    assert prompt_ids(first.prompt)[512:600] != prompt_ids(second.prompt)[512:]
    # The first prompt ends inside block 1, which the third has whole.
    assert prompt_ids(third.prompt)[:1000] == prompt_ids(first.prompt)
    assert third.output_tokens == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no requests"),
        ("{]\n", "line 1 is not JSON"),
        ("[1]\n", "expected a JSON object"),
        (mooncake({"timestamp": 0, "output_length": 5, "hash_ids": [0]}), "input_length is None"),
        (
            mooncake({"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0]}),
            "600 input tokens need 2 hash_ids",
        ),
        (
            mooncake({"timestamp": -5, "input_length": 6, "output_length": 5, "hash_ids": [0]}),
            "not below 0",
        ),
    ],
)
def test_a_broken_mooncake_trace_is_refused_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(WorkloadError, match=said):
        MooncakeTrace(path=written(tmp_path, text)).requests(1)


def test_the_mooncake_trace_can_be_cut_to_short_prompts() -> None:
    path = shared("mooncake_fast25/conversation_trace.jsonl")
    part = Part(end_s=120.0)
    everything = MooncakeTrace(path=path, part=part).requests(1)
    short = MooncakeTrace(path=path, part=part, max_prompt_tokens=8000).requests(1)
    assert 0 < len(short) < len(everything)
    assert max(r.prompt_tokens for r in short) <= 8000


def test_servegen_rates_shape_the_arrivals(tmp_path: Path) -> None:
    path = written(tmp_path, "window_start_s,req_per_s\n0,100\n600,300\n1200,0\n")
    requests = ServeGenRates(path=path, scale=0.01).requests(1)
    counts = [sum(a <= r.arrival_s < a + 600 for r in requests) for a in (0, 600, 1200)]
    # 600 s at 1/s, 600 s at 3/s (standard deviations 24 and 42), then nothing.
    assert abs(counts[0] - 600) < 100 and abs(counts[1] - 1800) < 170 and counts[2] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("window_start_s\n0\n", "lacks column req_per_s"),
        ("window_start_s,req_per_s\n0,1\n", "at least two windows"),
        ("window_start_s,req_per_s\n0,1\n600,-1\n", "not below 0"),
        ("window_start_s,req_per_s\n600,1\n0,1\n", "sort them"),
    ],
)
def test_broken_rates_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        ServeGenRates(path=written(tmp_path, text)).requests(1)


@pytest.mark.parametrize(
    "wrong", [{"start_s": 5.0, "end_s": 5.0}, {"start_s": -1.0}, {"keep": 0.0}, {"keep": 1.5}]
)
def test_an_impossible_part_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(WorkloadError):
        Part(**wrong)
