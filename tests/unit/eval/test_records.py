from __future__ import annotations

import json
from dataclasses import replace

import pytest

from eval.harness.records import (
    UNFINISHED,
    OfflineRecord,
    OnlineRecord,
    RunRecord,
    Slo,
    summarise,
)

SLO = Slo(ttft_s=2.0, tpot_s=0.3)


def online(
    *,
    due_s: float = 10.0,
    sent_s: float = 10.0,
    first_s: float | None = 11.0,
    last_s: float | None = 15.6,
    error: str | None = None,
) -> OnlineRecord:
    return OnlineRecord(
        index=0,
        due_s=due_s,
        sent_s=sent_s,
        first_s=first_s,
        last_s=last_s,
        stopped_s=40.0,
        max_gap_s=0.2,
        prompt_tokens=100,
        output_tokens=24,
        service_tier=None,
        error=error,
    )


def offline(done_s: float, *, cached_tokens: int = 0, error: str | None = None) -> OfflineRecord:
    return OfflineRecord(
        index=0,
        document=0,
        done_s=done_s,
        prompt_tokens=1000,
        cached_tokens=cached_tokens,
        output_tokens=16,
        service_tier=None,
        text="",
        error=error,
    )


def run_of(*offline_records: OfflineRecord, submitted: int = 10) -> RunRecord:
    return RunRecord(
        workload_sha256="0",
        window_s=100.0,
        num_offline_submitted=submitted,
        online=(online(),),
        offline=offline_records,
    )


def test_tpot_is_the_mean_gap_after_the_first_token() -> None:
    # 24 tokens: 23 gaps over 15.6 - 11.0 = 4.6 s.
    assert online().tpot_s == pytest.approx(0.2)


def test_ttft_counts_from_when_the_message_was_due_not_from_a_late_send() -> None:
    assert online(sent_s=10.9).ttft_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("record", "attains"),
    [
        (online(), True),
        (online(first_s=12.0, last_s=12.0 + 23 * 0.3), True),
        (online(first_s=12.1), False),
        (online(last_s=11.0 + 23 * 0.31), False),
        (online(last_s=None, error=UNFINISHED), False),
        (online(first_s=None, last_s=None, error="HTTP 500"), False),
    ],
    ids=["both hold", "both at the bound", "late first", "slow", "unfinished", "error"],
)
def test_a_request_attains_only_if_it_finished_and_both_bounds_hold(
    record: OnlineRecord, attains: bool
) -> None:
    assert record.attains(SLO) is attains


def test_a_request_that_never_got_a_token_counts_with_the_time_it_waited() -> None:
    assert online(first_s=None, last_s=None, error=UNFINISHED).ttft_s == pytest.approx(30.0)


def test_offline_work_counts_within_the_window_only_and_without_errors() -> None:
    run = run_of(offline(50.0), offline(100.0), offline(100.1), offline(60.0, error="HTTP 500"))
    summary = summarise(run, SLO)
    assert summary["offline_done"] == 2
    assert summary["offline_errors"] == 1
    assert summary["offline_per_s"] == pytest.approx(0.02)
    assert summary["offline_tokens_per_s"] == pytest.approx(2 * 1016 / 100)


def test_kv_hit_rate_is_the_cached_share_of_the_prompts_answered() -> None:
    run = run_of(
        offline(50.0, cached_tokens=900), offline(60.0), offline(200.0, cached_tokens=1000)
    )
    assert summarise(run, SLO)["kv_hit_rate"] == pytest.approx(0.45)


def test_a_pool_that_ran_dry_is_said_and_rated_until_then() -> None:
    summary = summarise(run_of(offline(20.0), offline(40.0), submitted=2), SLO)
    assert summary["pool_dry"] is True
    assert summary["offline_per_s"] == pytest.approx(2 / 40)


def test_a_run_without_offline_work_has_no_offline_rates() -> None:
    summary = summarise(run_of(submitted=0), SLO)
    assert summary["offline_per_s"] is None
    assert summary["kv_hit_rate"] is None
    assert summary["pool_dry"] is False


def test_a_run_survives_the_way_through_json() -> None:
    run = run_of(offline(50.0))
    assert RunRecord.from_json(json.loads(json.dumps(run.to_json()))) == run


def test_a_run_is_refused_only_if_every_message_met_an_error_other_than_being_late() -> None:
    late = online(first_s=None, last_s=None, error=UNFINISHED)
    broken = online(first_s=None, last_s=None, error="HTTP 500")
    assert replace(run_of(), online=(broken, broken)).refused == "HTTP 500"
    assert replace(run_of(), online=(broken, late)).refused is None
    assert replace(run_of(), online=()).refused is None


def test_the_best_hit_rate_computes_every_document_once() -> None:
    # two documents: three questions of 1,000 tokens share at most 999 twice, the single one nothing
    records = [offline(10.0), offline(20.0), offline(30.0), replace(offline(40.0), document=1)]
    best = summarise(run_of(*records), SLO)["best_kv_hit_rate"]
    assert best == pytest.approx(2 * 999 / 4_000)
    assert summarise(run_of(), SLO)["best_kv_hit_rate"] is None
