"""The store against a dict: whatever clients, runners, stale runners and restarts do."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from echo_sglang.service.errors import ConflictError, IdempotencyError, LeaseLostError
from echo_sglang.service.model import (
    TRANSITIONS,
    Batch,
    BatchState,
    FileObject,
    IdempotencyKey,
    Lease,
    Line,
    LineResult,
    NewBatch,
    ResultKind,
)
from echo_sglang.service.store import Store, open_store

ENDED = ("completed", "expired", "cancelled", "failed")
LEASE_S = 10.0


@dataclass
class Twin:
    """What the store should say of one batch."""

    state: str = "validating"
    ends_as: str | None = None
    paused: bool = False
    fence: int = 0
    held: bool = False
    holder: str | None = None
    waiting: dict[int, int] = field(default_factory=dict)
    in_flight: dict[int, int] = field(default_factory=dict)
    results: dict[str, list[int]] = field(default_factory=lambda: {"output": [], "error": []})
    total: int = 0

    @property
    def open(self) -> set[int]:
        return self.waiting.keys() | self.in_flight.keys()

    def put_back(self, numbers: set[int], crashed: bool) -> None:
        for number in numbers & self.in_flight.keys():
            self.waiting[number] = self.in_flight.pop(number) + crashed

    def end(self, number: int, kind: str) -> None:
        if number in self.open:
            self.waiting.pop(number, None)
            self.in_flight.pop(number, None)
            self.results[kind].append(number)


class StoreAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        shared = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
        self.numbers = count()
        self.store = self._open()
        self.now = 100.0
        self.twins: dict[str, Twin] = {}
        self.leases: dict[str, Lease] = {}
        self.stale: list[Lease] = []
        self.keys: dict[str, tuple[str, str]] = {}
        self.file = FileObject(
            id=f"file-{0:032x}",
            owner="",
            filename="in.jsonl",
            purpose="batch",
            size_bytes=1,
            created_at=1.0,
        )
        self.store.files.add(self.file)

    def _open(self) -> Store:
        """Ids are counted: hypothesis wants the same story each time."""
        return open_store(self.folder, new_hex=lambda: f"{next(self.numbers):032x}")

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def _batches(self, *states: str) -> list[str]:
        return sorted(
            batch_id
            for batch_id, lease in self.leases.items()
            if self.twins[batch_id].state in states and self.twins[batch_id].fence == lease.fence
        )

    def _pick(self, data: st.DataObject, *states: str) -> tuple[Lease, Twin] | None:
        names = self._batches(*states)
        if not names:
            return None
        name = data.draw(st.sampled_from(names))
        return self.leases[name], self.twins[name]

    # Clients

    @rule(key=st.sampled_from("abc"), digest=st.sampled_from("xy"))
    def create(self, key: str, digest: str) -> None:
        new = NewBatch(
            owner="",
            endpoint="/v1/completions",
            input_file_id=self.file.id,
            completion_window="24h",
            window_s=1e6,
        )
        idempotency = IdempotencyKey(key=key, body_digest=digest)
        if key in self.keys and self.keys[key][1] != digest:
            with pytest.raises(IdempotencyError):
                self.store.batches.create(new, self.now, idempotency)
            return
        batch, made = self.store.batches.create(new, self.now, idempotency)
        assert made is (key not in self.keys)
        assert self.keys.setdefault(key, (batch.id, digest))[0] == batch.id
        self.twins.setdefault(batch.id, Twin())

    @precondition(lambda self: self.twins)
    @rule(data=st.data(), verb=st.sampled_from(["cancel", "pause", "resume"]))
    def ask(self, data: st.DataObject, verb: str) -> None:
        batch_id = data.draw(st.sampled_from(sorted(self.twins)))
        twin = self.twins[batch_id]
        running = twin.state in ("validating", "in_progress")
        try:
            if verb == "cancel":
                self.store.batches.cancel("", batch_id, self.now)
            else:
                getattr(self.store.batches, verb)("", batch_id)
        except ConflictError:
            assert not running and not (verb == "cancel" and twin.state == "cancelling")
            return
        assert running or (verb == "cancel" and twin.state == "cancelling")
        if verb == "cancel":
            twin.state, twin.ends_as, twin.paused = "cancelling", "cancelled", False
        else:
            twin.paused = verb == "pause"

    # Runners

    @rule(
        wait_s=st.sampled_from([0.0, LEASE_S + 1]),
        holder=st.sampled_from(["one", "two"]),
        blame_own=st.booleans(),
    )
    def acquire(self, wait_s: float, holder: str, blame_own: bool) -> None:
        self.now += wait_s
        free = {
            batch_id
            for batch_id, twin in self.twins.items()
            if twin.state not in ENDED
            and not (
                twin.held and batch_id in self.leases and self.leases[batch_id].until > self.now
            )
        }
        taken = self.store.work.acquire(holder, self.now, LEASE_S, 99, blame_own=blame_own)
        assert {lease.batch_id for lease, _ in taken} == free
        for lease, _ in taken:
            twin = self.twins[lease.batch_id]
            if lease.batch_id in self.leases:
                self.stale.append(self.leases[lease.batch_id])
            assert lease.fence == twin.fence + 1
            twin.fence, twin.held = lease.fence, True
            twin.put_back(set(twin.in_flight), blame_own or twin.holder != holder)
            twin.holder = holder
            self.leases[lease.batch_id] = lease

    @rule(data=st.data(), num_lines=st.integers(0, 5))
    def validate(self, data: st.DataObject, num_lines: int) -> None:
        picked = self._pick(data, "validating")
        if picked is None:
            return
        lease, twin = picked
        lines = [
            Line(
                batch_id=lease.batch_id,
                number=number,
                custom_id=str(number),
                offset=0,
                size_bytes=1,
                order_key=bytes([number % 2]),
            )
            for number in range(1, num_lines + 1)
        ]
        self.store.work.begin_lines(lease)
        self.store.work.add_lines(lease, lines)
        self.store.work.start(lease, "m", self.now)
        twin.state, twin.total = "in_progress", num_lines
        twin.waiting = {line.number: 0 for line in lines}

    @rule(data=st.data(), numbers=st.sets(st.integers(1, 5)))
    def dispatch(self, data: st.DataObject, numbers: set[int]) -> None:
        picked = self._pick(data, "in_progress", "cancelling", "finalizing")
        if picked is None:
            return
        lease, twin = picked
        marked = self.store.work.dispatch(lease, sorted(numbers))
        startable = twin.state == "in_progress" and not twin.paused
        assert marked == (numbers & twin.waiting.keys() if startable else set())
        for number in marked:
            twin.in_flight[number] = twin.waiting.pop(number)

    @rule(data=st.data(), numbers=st.sets(st.integers(1, 5)), crashed=st.booleans())
    def put_back(self, data: st.DataObject, numbers: set[int], crashed: bool) -> None:
        picked = self._pick(data, "in_progress", "cancelling", "finalizing")
        if picked is not None:
            lease, twin = picked
            self.store.work.put_back(lease, sorted(numbers), crashed=crashed)
            twin.put_back(numbers, crashed)

    @rule(
        data=st.data(),
        results=st.lists(st.tuples(st.integers(1, 5), st.sampled_from(ResultKind)), max_size=6),
    )
    def record(self, data: st.DataObject, results: list[tuple[int, ResultKind]]) -> None:
        picked = self._pick(data, "in_progress", "cancelling", "finalizing")
        if picked is None:
            return
        lease, twin = picked
        self.store.work.record(lease, [_result(number, kind) for number, kind in results])
        for number, kind in results:
            twin.end(number, kind.value)

    @rule(data=st.data())
    def finalize(self, data: st.DataObject) -> None:
        picked = self._pick(data, "in_progress")
        if picked is not None:
            lease, twin = picked
            twin.ends_as = "expired" if twin.open else "completed"
            self.store.endings.finalize(lease, BatchState(twin.ends_as), self.now)
            twin.state, twin.paused = "finalizing", twin.paused

    @rule(data=st.data(), limit=st.integers(1, 3))
    def answer_rest(self, data: st.DataObject, limit: int) -> None:
        picked = self._pick(data, "finalizing", "cancelling")
        if picked is None:
            return
        lease, twin = picked
        rest = sorted(twin.open)[:limit]
        answered = self.store.endings.answer_rest(
            lease, lambda line: _result(line.number, ResultKind.ERROR), limit
        )
        assert answered == len(rest)
        for number in rest:
            twin.end(number, "error")

    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        picked = self._pick(data, "finalizing", "cancelling")
        if picked is not None and not picked[1].open:
            lease, twin = picked
            assert twin.ends_as is not None
            self.store.endings.finish(lease, [], self.now)
            twin.state, twin.held, twin.paused = twin.ends_as, False, False

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        picked = self._pick(data, "validating", "in_progress", "finalizing", "cancelling")
        if picked is not None:
            lease, twin = picked
            self.store.work.release(lease)
            twin.put_back(set(twin.in_flight), False)
            twin.held = False
            self.stale.append(self.leases.pop(lease.batch_id))

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def a_stale_runner_cannot_write(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.stale))
        for write in (
            lambda: self.store.work.record(lease, [_result(1, ResultKind.OUTPUT)]),
            lambda: self.store.work.dispatch(lease, [1]),
            lambda: self.store.endings.finish(lease, [], self.now),
        ):
            with pytest.raises(LeaseLostError):
                write()

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = self._open()
        self.store.work.forget_leases("one")
        for lease in self.leases.values():
            self.leases[lease.batch_id] = Lease(
                batch_id=lease.batch_id, fence=lease.fence, until=self.now
            )

    # What must hold

    @invariant()
    def every_batch_is_as_the_dict_says(self) -> None:
        for batch_id, twin in self.twins.items():
            batch = self.store.batches.get("", batch_id)
            assert (batch.state.value, batch.pause_requested) == (twin.state, twin.paused)
            _check_counts(batch, twin)
            for kind in ResultKind:
                lines = self.store.batches.result_lines(batch_id, kind, 0, 99)
                assert list(lines) == [b"%d" % number for number in twin.results[kind.value]]
            if twin.state not in ENDED:
                waiting = {line.number: line.crashes for line in self._waiting(batch_id)}
                assert waiting == twin.waiting

    def _waiting(self, batch_id: str) -> list[Line]:
        lines = list(self.store.work.waiting(batch_id, 99))
        assert lines == sorted(lines, key=lambda line: (line.order_key, line.number))
        return lines


def _check_counts(batch: Batch, twin: Twin) -> None:
    output, error = twin.results["output"], twin.results["error"]
    assert (batch.counts.completed, batch.counts.failed) == (len(output), len(error))
    assert batch.counts.total == twin.total
    ended = sorted(output + error)
    assert len(set(ended)) == len(ended)
    assert batch.counts.open == len(twin.open)


def _result(number: int, kind: ResultKind) -> LineResult:
    return LineResult(number=number, kind=kind, payload=b"%d" % number)


TestStoreAgainstDict = StoreAgainstDict.TestCase
TestStoreAgainstDict.settings = settings(
    max_examples=6,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.slow
class TestStoreAgainstDictLonger(StoreAgainstDict.TestCase):
    settings = settings(
        max_examples=60,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def test_no_state_follows_an_ended_one() -> None:
    for state in BatchState:
        assert bool(TRANSITIONS[state]) is not state.is_final
