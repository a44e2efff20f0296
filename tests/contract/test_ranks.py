"""Ranks agree over real gloo groups, whatever their clocks and delays."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sglang")

import torch.distributed as dist
import torch.multiprocessing as mp

from echo_sglang.adapter import ranks
from echo_sglang.adapter.ranks import Ranks, RankState, nothing_to_decide
from echo_sglang.domain.plan import ChunkAction, Reason, StepPlan
from echo_sglang.errors import RankError

NUM_RANKS = 3
STEPS = 120
STATE = RankState(step=1, rows=2, waiting=3, pooled=4, available_tokens=500, chunk_tokens=-1)


def plan_of(step: int) -> StepPlan:
    """A plan of every size: up to 40,000 characters of request ids."""
    names = tuple(f"{step}-{i}-{'x' * 32}" for i in range(1000 if step % 17 == 0 else step % 90))
    return StepPlan(
        reason=list(Reason)[step % len(Reason)],
        chunk_tokens=step,
        offline_order=names,
        release=names[:step],
        chunk_action=list(ChunkAction)[step % len(ChunkAction)],
        budget_s=float("inf") if step % 2 else 0.1 * step,
    )


def follow_many_plans(rank: int, group: Any) -> None:
    chance = random.Random(rank)
    us = Ranks(group)
    assert (us.size, us.leads, us.alone) == (NUM_RANKS, rank == 0, False)
    for step in range(STEPS):
        time.sleep(chance.choice([0.0, 0.0, 0.0, 0.004]))

        def decide(step: int = step) -> tuple[float, StepPlan]:
            assert rank == 0, "a rank that follows decided by itself"
            return 0.125 * step, plan_of(step)

        state = RankState(
            step=step, rows=step % 7, waiting=0, pooled=step, available_tokens=9, chunk_tokens=-1
        )
        assert us.share(state, decide) == (0.125 * step, plan_of(step))


def fall_out_of_step(rank: int, group: Any) -> None:
    mine = {"rows": 5} if rank == 2 else {}
    state = RankState(**{**STATE_FIELDS, **mine})
    share = lambda: Ranks(group).share(state, lambda: (1.0, plan_of(1)))  # noqa: E731
    if rank != 2:
        assert share() == (1.0, plan_of(1))
        return
    with pytest.raises(RankError, match=r"rank 2 is out of step with rank 0.*rows=5.*rows=2"):
        share()


STATE_FIELDS = {name: getattr(STATE, name) for name in STATE.__dataclass_fields__}


def _rank(rank: int, store: str, folder: str, work: Callable[[int, Any], None]) -> None:
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=NUM_RANKS,
            timeout=timedelta(seconds=60),
        )
        work(rank, dist.new_group(list(range(NUM_RANKS)), backend="gloo"))
        dist.barrier()
    except BaseException:
        (Path(folder) / f"error{rank}").write_text(traceback.format_exc())
        raise


@pytest.mark.slow
@pytest.mark.parametrize("work", [follow_many_plans, fall_out_of_step], ids=lambda w: w.__name__)
def test_ranks_over_gloo(work: Callable[[int, Any], None], tmp_path: Path) -> None:
    started = mp.start_processes(
        _rank,
        args=(str(tmp_path / "store"), str(tmp_path), work),
        nprocs=NUM_RANKS,
        join=False,
        start_method="spawn",
    )
    try:
        while not started.join(timeout=90):
            pass
    except Exception:
        pytest.fail("\n".join(path.read_text() for path in tmp_path.glob("error*")))


def test_a_rank_that_is_alone_needs_no_group() -> None:
    us = Ranks(None)
    assert us.alone and us.leads


def scheduler(**fields: Any) -> Any:
    usual = {"waiting_queue": [], "chunked_req": None, "offline_queue": [], "echo_step": 1}
    return SimpleNamespace(**{**usual, **fields})


def batch(*, offline: bool) -> Any:
    return SimpleNamespace(reqs=[SimpleNamespace(is_offline=offline)])


def test_online_rows_alone_need_no_agreement_but_now_and_then_on_the_time() -> None:
    assert nothing_to_decide(scheduler(), batch(offline=False))
    assert not nothing_to_decide(scheduler(echo_step=ranks.AGREE_EVERY), batch(offline=False))


@pytest.mark.parametrize(
    "fields", [{"waiting_queue": [1]}, {"chunked_req": 1}, {"offline_queue": [1]}], ids=str
)
def test_whatever_waits_needs_a_plan(fields: dict[str, Any]) -> None:
    assert not nothing_to_decide(scheduler(**fields), batch(offline=False))


def test_offline_rows_may_have_to_give_way() -> None:
    assert not nothing_to_decide(scheduler(), batch(offline=True))
