"""The emulator's bench says whose code ran."""

from __future__ import annotations

import pytest

from echo_sglang.sim.processes import run_apart
from eval.bench_sim import measure, part_of, spec_of
from eval.harness.server import REPOSITORY


@pytest.mark.parametrize(
    ("file_name", "part"),
    [
        (f"{REPOSITORY}/echo_sglang/sim/worker.py", "emulator"),
        (f"{REPOSITORY}/echo_sglang/kv/ages.py", "Echo's decisions and cache"),
        ("/x/site-packages/sglang/srt/mem_cache/common.py", "SGLang's cache and allocators"),
        ("/x/site-packages/sglang/srt/managers/scheduler.py", "SGLang's scheduler"),
        ("/x/site-packages/sglang/utils.py", "SGLang, the rest"),
        ("/x/site-packages/torch/_tensor.py", None),
        ("<string>", None),
    ],
)
def test_files_belong_to_parts(file_name: str, part: str | None) -> None:
    assert part_of(file_name) == part


def test_the_pool_has_as_many_questions_as_asked_for() -> None:
    workload = spec_of("echo", 25, 5.0, seed=1).workload()
    assert len(workload.offline) == 30  # whole documents of 10


@pytest.mark.slow
def test_a_run_is_measured_and_its_shares_add_up() -> None:
    summary, shares = next(run_apart(measure, [spec_of("stock", 20, 3.0, seed=1)]))
    assert summary["offline_requests"] == 20
    assert sum(shares.values()) == pytest.approx(1.0)
    assert "SGLang's scheduler" in shares
