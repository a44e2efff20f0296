"""Which offline rows give way, and to what."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.snapshot import MemoryView, OfflineRow, OfflineRows, Snapshot, WaitingOnline
from echo_sglang.estimate.step_time import StepTimeModel

RESULT_STEPS = 2
"""Iterations until a result in flight of a released request was surely looked at."""

MAX_REST_DOUBLINGS = 6


def rest_steps(preemptions: int, min_parked_steps: int) -> int:
    """Iterations that a decode row stays away after it gave way for the `preemptions`-th time.

    Twice as long every time, up to 64 times as long: a request that never finds a quiet moment
    gives way a bounded number of times instead of coming and going for ever.
    """
    doublings = min(max(preemptions - 1, 0), MAX_REST_DOUBLINGS)
    return max(min_parked_steps << doublings, RESULT_STEPS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """What online requests lack: KV tokens and request slots; zero when nothing."""

    tokens: int = 0
    slots: int = 0

    def __bool__(self) -> bool:
        return self.tokens > 0 or self.slots > 0


def online_shortage(snapshot: Snapshot) -> Shortage:
    """What waiting online requests need beyond what is free, evictable or growing."""
    return shortage_of(
        snapshot.waiting_online, snapshot.memory, snapshot.free_slots, snapshot.page_size
    )


def shortage_of(
    waiting: tuple[WaitingOnline, ...], memory: MemoryView, free_slots: int, page_size: int
) -> Shortage:
    """As `online_shortage`, before there is a snapshot."""
    if not waiting:
        return Shortage()
    need = sum(w.extend_tokens + w.max_new_tokens + page_size for w in waiting) + 1
    need += memory.denied_tokens
    have = memory.available_tokens - memory.growth_tokens
    return Shortage(tokens=max(need - have, 0), slots=max(len(waiting) - free_slots, 0))


def asks_for_memory(
    waiting: tuple[WaitingOnline, ...], memory: MemoryView, free_slots: int, page_size: int
) -> bool:
    """True if rows may have to give KV back: only then does anybody ask what each holds alone."""
    return memory.available_tokens < memory.reserve_tokens or bool(
        shortage_of(waiting, memory, free_slots, page_size)
    )


def rows_for_shortage(rows: OfflineRows, shortage: Shortage) -> tuple[OfflineRow, ...]:
    """The fewest rows that cover a shortage, a more urgent one counting as many as its urgency:
    those that give back most KV for it go first, among equals those that gave way least often."""
    if not shortage:
        return ()
    chosen: list[OfflineRow] = []
    tokens = 0
    by_gain = sorted(
        rows,
        key=lambda row: (-_gain_tokens(row) / row.urgency, row.preemptions, row.output_tokens),
    )
    for row in by_gain:
        if tokens >= shortage.tokens and len(chosen) >= shortage.slots:
            break
        if row.releasable:
            chosen.append(row)
            tokens += _gain_tokens(row)
    return tuple(chosen)


def rows_for_reserve(rows: OfflineRows, memory: MemoryView) -> tuple[OfflineRow, ...]:
    """The fewest rows that give the burst reserve back: offline work never locks it. As for a
    shortage, a more urgent row counts as many as its urgency.

    One row always stays: a prompt that is alone may need more than the reserve leaves.
    """
    lacking = memory.reserve_tokens - memory.available_tokens
    if lacking <= 0:
        return ()
    chosen: list[OfflineRow] = []
    by_gain = sorted(
        rows,
        key=lambda row: (-row.private_tokens / row.urgency, row.preemptions, row.output_tokens),
    )
    for row in by_gain:
        if lacking <= 0 or len(chosen) + 1 >= len(rows):
            break
        if row.releasable and row.private_tokens > 0:
            chosen.append(row)
            lacking -= row.private_tokens
    return tuple(chosen)


def covers(rows: tuple[OfflineRow, ...], shortage: Shortage) -> bool:
    """True if releasing these rows gives online requests all that they lack."""
    gained = sum(_gain_tokens(row) for row in rows)
    return len(rows) >= shortage.slots and gained >= shortage.tokens


def rows_for_time(
    rows: OfflineRows, snapshot: Snapshot, model: StepTimeModel, budget_s: float
) -> tuple[OfflineRow, ...]:
    """The fewest rows whose absence lets a decode step end within `budget_s`.

    The least urgent go first, then those that gave way least often, then the youngest: they lose
    least if their KV is evicted. Found in O(log rows) tries. Empty when releasing does not
    help: even online rows alone take longer.
    """
    everybody = decode_shape(snapshot, rows)
    if model.upper(everybody) <= budget_s:
        return ()
    youngest = sorted(
        (row for row in rows if row.releasable),
        key=lambda row: (row.urgency, row.preemptions, row.output_tokens, row.kv_tokens),
    )
    if not youngest:
        return ()

    gone_kv = list(accumulate((row.kv_tokens for row in youngest), initial=0))

    def suffices(count: int) -> bool:
        kept = BatchShape(
            decode_rows=everybody.decode_rows - count,
            decode_kv_tokens=everybody.decode_kv_tokens - gone_kv[count],
        )
        return model.upper(kept) <= budget_s

    if not suffices(len(youngest)):
        return ()
    few, enough = 0, 1
    while not suffices(min(enough, len(youngest))):
        few, enough = enough, 2 * enough
    enough = min(enough, len(youngest))
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if suffices(middle) else (middle, enough)
    return tuple(youngest[:enough])


def decode_shape(snapshot: Snapshot, offline_rows: OfflineRows) -> BatchShape:
    """The decode part of an iteration with these offline rows beside the online ones."""
    return BatchShape(
        decode_rows=snapshot.online.rows + len(offline_rows),
        decode_kv_tokens=snapshot.online.kv_tokens + sum(offline_rows.kv_tokens),
    )


def _gain_tokens(row: OfflineRow) -> int:
    return row.private_tokens + row.remaining_tokens
