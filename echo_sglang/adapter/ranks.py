"""One decision for all tensor-parallel ranks: the first rank decides, the others follow.

SGLang runs one scheduler a rank; they stay in step because each computes the same batches
from the same requests. What Echo decides depends on a clock and on measured times, which no
two ranks share, so both come from the first rank: its plan, and the time at which it was
made, which is the only time the KV caches of all ranks know.

What a rank has and the others have too (queues, rows, chunk, cache) is sent along as
`RankState`. A rank whose state differs stops with both: later, in a collective, it would hang.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
import torch.distributed as dist
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.runtime_context import get_parallel

from echo_sglang.adapter.kv_space import kv_space
from echo_sglang.adapter.requests import is_offline
from echo_sglang.domain.plan import StepPlan
from echo_sglang.errors import RankError

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler

FIRST_MESSAGE_BYTES = 4096
"""Size of the one message of nearly every decision: some 100 request ids. A longer decision
takes a second message."""

LENGTH_BYTES = 8

AGREE_EVERY = 32
"""Iterations after which the ranks agree on the time though there was nothing to decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankState:
    """What every rank must have alike at a decision. rows: of the running batch.
    available_tokens: KV free, or cached and evictable. chunk_tokens: computed so far of the
    half-done prefill, -1 without one."""

    step: int
    rows: int
    waiting: int
    pooled: int
    available_tokens: int
    chunk_tokens: int

    @classmethod
    def of(cls, scheduler: EchoScheduler, running_batch: ScheduleBatch) -> RankState:
        """The state of this rank now."""
        chunk = scheduler.chunked_req
        return cls(
            step=scheduler.echo_step,
            rows=len(running_batch.reqs),
            waiting=len(scheduler.waiting_queue),
            pooled=len(scheduler.offline_queue),
            available_tokens=kv_space(scheduler).available,
            chunk_tokens=-1 if chunk is None else int(chunk.prefix_len),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What the first rank tells the others. now_s: on its clock, when it decided."""

    now_s: float
    plan: StepPlan
    state: RankState


class Ranks:
    """The ranks of one engine. `share` is collective: all call it in the same iterations.

    group: a CPU process group of all of them, None for a rank that is alone.
    first: the global number of the rank that decides. Errors: `share` raises RankError on a
    rank that has another state than the first, and whatever torch raises if a rank is gone.
    """

    def __init__(self, group: dist.ProcessGroup | None, *, first: int = 0) -> None:
        self._group = group
        self._first = first
        self.size = 1 if group is None else dist.get_world_size(group)
        self.leads = group is None or dist.get_rank() == first
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Ruling).decode
        self._message = torch.zeros(FIRST_MESSAGE_BYTES, dtype=torch.uint8)

    @property
    def alone(self) -> bool:
        """True if there is nobody to agree with."""
        return self.size == 1

    def share(
        self, state: RankState, decide: Callable[[], tuple[float, StepPlan]]
    ) -> tuple[float, StepPlan]:
        """(time, plan) of the first rank, which alone calls `decide`. The others wait for it."""
        if self.leads:
            now_s, plan = decide()
            self._send(Ruling(now_s=now_s, plan=plan, state=state))
            return now_s, plan
        ruling = self._receive()
        if ruling.state != state:
            raise RankError(
                f"rank {dist.get_rank()} is out of step with rank {self._first}: here {state}, "
                f"there {ruling.state}; restart the server, and report this with both logs"
            )
        return ruling.now_s, ruling.plan

    def _send(self, ruling: Ruling) -> None:
        data = self._encode(ruling)
        whole = bytearray(len(data).to_bytes(LENGTH_BYTES, "little") + data)
        first = torch.frombuffer(whole, dtype=torch.uint8)[:FIRST_MESSAGE_BYTES]
        self._message[: len(first)] = first
        dist.broadcast(self._message, src=self._first, group=self._group)
        if len(whole) > FIRST_MESSAGE_BYTES:
            rest = torch.frombuffer(whole, dtype=torch.uint8, offset=FIRST_MESSAGE_BYTES)
            dist.broadcast(rest, src=self._first, group=self._group)

    def _receive(self) -> Ruling:
        dist.broadcast(self._message, src=self._first, group=self._group)
        received = self._message.numpy().tobytes()
        end = LENGTH_BYTES + int.from_bytes(received[:LENGTH_BYTES], "little")
        if end > FIRST_MESSAGE_BYTES:
            rest = torch.empty(end - FIRST_MESSAGE_BYTES, dtype=torch.uint8)
            dist.broadcast(rest, src=self._first, group=self._group)
            received += rest.numpy().tobytes()
        return self._decode(received[LENGTH_BYTES:end])


def ranks_of(scheduler: EchoScheduler) -> Ranks:
    """The tensor-parallel ranks that this scheduler is one of."""
    group = scheduler.tp_group
    if group.world_size == 1:
        return Ranks(None)
    return Ranks(group.cpu_group, first=group.first_rank)


def nothing_to_decide(scheduler: EchoScheduler, running_batch: ScheduleBatch) -> bool:
    """True if a plan can only be to go on decoding: nobody waits, nothing is half done and no
    offline row runs. Known to every rank without a word. O(running rows)."""
    return (
        not scheduler.waiting_queue
        and scheduler.chunked_req is None
        and not len(scheduler.offline_queue)
        and not any(is_offline(req) for req in running_batch.reqs)
        and scheduler.echo_step % AGREE_EVERY != 0
    )


def path_of_replica(path: Path) -> Path:
    """Where this data parallel replica writes: PATH.dp0, PATH.dp1, ..., PATH if it is the only."""
    parallel = get_parallel()
    if parallel.dp_size <= 1:
        return path
    return path.with_name(f"{path.name}.dp{parallel.dp_rank or 0}")
