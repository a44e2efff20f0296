"""The comparison of evictions asks for the runs it claims and judges what it was given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from echo_sglang.config import EvictionPolicy
from echo_sglang.errors import WorkloadError
from echo_sglang.sim.spec import RunSpec
from eval.kv_cache import CHATS, QUESTIONS, Plan, run, verdict

ONLINE_HITS = {"value": 0.5, "class-lru": 0.5, "lru": 0.4}


def fake(specs: Sequence[RunSpec], *, jobs: int) -> Iterator[dict[str, Any]]:
    for spec in specs:
        eviction = spec.setup.echo.eviction
        yield {
            "summary": {
                "attainment": 1.0,
                "ttft_p99_s": 0.2,
                "online_hit_rate": ONLINE_HITS[eviction],
                "offline_per_s": 7.0,
                "offline_hit_rate": 0.6 + 0.01 * spec.seed,
                "optimal_hit_rate": 0.8,
                "recomputed_tokens": 10,
                "decide_p50_ms": 1.0,
            }
        }


def test_every_eviction_plays_the_same_work_and_medians_are_judged(tmp_path: Path) -> None:
    table = run(Plan(results=tmp_path, seeds=(1, 2, 9)), fake)
    assert len(table) == 2 * len(EvictionPolicy)
    value = table[(table["online"] == CHATS) & (table["eviction"] == "value")].iloc[0]
    assert value["offline_hit_rate"] == pytest.approx(0.62)
    assert value["of_bound"] == pytest.approx(0.62 / 0.8)
    claims = verdict(table)
    assert claims[f"{CHATS}: online hit rate not below SGLang's LRU"]
    assert not claims[f"{CHATS}: offline hit rate at least 0.90 of the bound"]
    assert (tmp_path / "kv-cache.json").is_file()
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 2 * 3 * len(EvictionPolicy)


def test_the_runs_differ_in_nothing_but_the_eviction(tmp_path: Path) -> None:
    plan = Plan(results=tmp_path)
    one, other = (
        plan.spec(QUESTIONS, eviction, 1).to_json()
        for eviction in (EvictionPolicy.VALUE, EvictionPolicy.LRU)
    )
    assert one["setup"]["echo"].pop("eviction") != other["setup"]["echo"].pop("eviction")
    assert one == other


def test_unknown_traffic_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="there are questions, conversations"):
        Plan(results=tmp_path, online=("mail",))
