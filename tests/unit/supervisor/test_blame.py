"""Requests are blamed for what they may have done, and for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from echo_sglang.supervisor.blame import EngineEnd, count_oom_kills, may_be_of_requests
from echo_sglang.supervisor.channel import Inherited, inherited_from

SIGKILL, SIGTERM, SIGSEGV, SIGABRT = -9, -15, -11, -6


def end(code: int, lost: tuple[int, ...] | None = None, **how: object) -> EngineEnd:
    return EngineEnd(**{"code": code, "lost": lost, "killed": False, "oom_kills": 0, **how})


@pytest.mark.parametrize(
    ("how", "blamed"),
    [
        # Its first process ended without a word.
        (end(SIGKILL), False),
        (end(SIGTERM), False),
        (end(SIGSEGV), True),
        (end(1), True),
        # It ended itself, always with SIGKILL, for want of another process.
        (end(SIGKILL, lost=(SIGKILL,)), False),
        (end(SIGKILL, lost=(SIGSEGV,)), True),
        (end(SIGKILL, lost=(SIGABRT, SIGTERM)), False),  # the rank that was left over aborted
        (end(SIGKILL, lost=(1,)), True),
        (end(SIGKILL, lost=()), True),  # an error was reported, nobody is dead yet
        # The supervisor found it hanging.
        (end(SIGKILL, killed=True), True),
        # The kernel ended something for want of memory, or does not say whether it did.
        (end(SIGKILL, oom_kills=1), True),
        (end(SIGKILL, lost=(SIGKILL,), oom_kills=1), True),
        (end(SIGKILL, oom_kills=None), True),
    ],
)
def test_only_what_somebody_else_ended_is_no_fault_of_its_requests(
    how: EngineEnd, blamed: bool
) -> None:
    assert may_be_of_requests(how) is blamed


def test_the_kernels_count_is_read_or_not_known(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    assert count_oom_kills(vmstat) is None
    vmstat.write_text("nr_free_pages 17\noom_kill_other 3\noom_kill 4\n")
    assert count_oom_kills(vmstat) == 4
    vmstat.write_text("nr_free_pages 17\n")
    assert count_oom_kills(vmstat) is None


@pytest.mark.parametrize("blame", [True, False])
def test_an_engine_inherits_the_verdict_on_the_last_one(blame: bool) -> None:
    given = Inherited(3, 4, 5, blame)
    assert inherited_from(given.to_environment()) == given
