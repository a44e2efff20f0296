"""The log says once that work will be late, and once that it will be in time after all."""

from __future__ import annotations

import logging

import pytest

sglang_utils = pytest.importorskip("sglang.srt.utils")

from echo_sglang.adapter.learning import LateWork  # noqa: E402
from echo_sglang.policy.deadlines import Outlook  # noqa: E402
from echo_sglang.policy.offline_status import OfflineProspects  # noqa: E402


def prospects(*late_requests: int) -> OfflineProspects:
    """Classes of ten requests due in 60 s, 120 s and so on."""
    outlook = tuple(
        Outlook(
            due_s=60.0 * number,
            requests=10,
            work=1_000.0,
            finish_s=90.0,
            laxity_s=60.0 * number - 90.0,
            late_requests=late,
            urgent=True,
            hopeless=False,
            urgency=4.0,
        )
        for number, late in enumerate(late_requests, start=1)
    )
    return OfflineProspects(now_s=0.0, jobs_waiting=1, work_per_s=250.0, outlook=outlook)


def test_a_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="echo_sglang.adapter.learning")
    late_work = LateWork()
    for state in ((0, 0), (4, 0), (6, 0), (0, 0), (0, 0), (0, 10)):
        late_work.warn(prospects(*state))
    late_work.warn(prospects())
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "offline work due in 60 s will be late at the pace of 250 tokens/s",
        "offline work due in 60 s will be in time",
        "offline work due in 120 s will be late at the pace of 250 tokens/s",
    ]
    assert "4 of 10 requests" in caplog.text
