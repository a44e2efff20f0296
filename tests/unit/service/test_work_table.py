"""Leases, lines and results, on every database."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from echo_sglang.service.errors import ConflictError, LeaseLostError
from echo_sglang.service.model import BatchError, BatchState, ResultKind
from echo_sglang.service.store import Store, open_store
from tests.unit.service.store_kit import add_file, create, lines_of, result, started


def test_a_line_ends_once_however_often_it_is_recorded(store: Store) -> None:
    lease, batch = started(store, 3)
    store.work.record(lease, [result(1), result(1, ResultKind.ERROR), result(2)])
    after = store.work.record(lease, [result(2, ResultKind.ERROR, "late"), result(2)])
    assert (after.counts.completed, after.counts.failed, after.counts.open) == (2, 0, 1)
    lines = store.batches.result_lines(batch.id, ResultKind.OUTPUT, 0, 10)
    assert list(lines) == [b'{"custom_id": "c1"}', b'{"custom_id": "c2"}']
    assert after.usage.input_tokens == 6 and after.usage.output_tokens == 4


def test_a_growing_file_is_read_from_any_line(store: Store) -> None:
    lease, batch = started(store, 5)
    store.work.record(lease, [result(4), result(2)])
    store.work.record(lease, [result(5), result(1, ResultKind.ERROR)])
    lines = store.batches.result_lines(batch.id, ResultKind.OUTPUT, 1, 2)
    assert list(lines) == [b'{"custom_id": "c2"}', b'{"custom_id": "c5"}']
    found = store.batches.by_result_file("", batch.output_file)
    assert (found[0].id, found[1]) == (batch.id, ResultKind.OUTPUT)


def test_a_paused_runner_that_lost_its_lease_cannot_write(store: Store) -> None:
    old, batch = started(store, 4)
    store.work.dispatch(old, [1, 2])
    [(new, _)] = store.work.acquire("two", old.until, 30.0, 5)
    assert new.fence > old.fence
    for write in (
        lambda: store.work.record(old, [result(1)]),
        lambda: store.work.dispatch(old, [3]),
        lambda: store.work.put_back(old, [1], crashed=True),
        lambda: store.endings.finalize(old, BatchState.EXPIRED, 200.0),
        lambda: store.work.release(old),
        lambda: store.endings.finish(old, [], 200.0),
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert store.work.renew([old, new], 200.0, 30.0)[0].fence == new.fence
    assert store.work.look([old]) == {}
    assert store.work.record(new, [result(1)]).counts.completed == 1
    assert batch.counts.total == 4


def test_a_lease_is_taken_only_when_it_is_over(store: Store) -> None:
    lease, _ = started(store, 1)
    assert store.work.acquire("two", lease.until - 0.1, 30.0, 5) == []
    [held] = store.work.renew([lease], lease.until - 0.1, 30.0)
    assert store.work.acquire("two", lease.until + 0.1, 30.0, 5) == []
    store.work.release(held)
    assert len(store.work.acquire("two", lease.until, 30.0, 5)) == 1


def test_lines_in_flight_at_a_crash_are_remembered(store: Store) -> None:
    lease, batch = started(store, 4)
    assert store.work.dispatch(lease, [1, 2, 9]) == {1, 2}
    assert store.work.dispatch(lease, [2, 3]) == {3}
    store.work.forget_leases("one")
    [(lease, _)] = store.work.acquire("one", 100.0, 30.0, 5)
    suspects = store.work.suspects(batch.id, 1, 10)
    assert [(line.number, line.crashes) for line in suspects] == [(1, 1), (2, 1), (3, 1)]
    store.work.dispatch(lease, [1])
    store.work.put_back(lease, [1], crashed=True)
    store.work.dispatch(lease, [2])
    store.work.put_back(lease, [2], crashed=False)
    assert [line.crashes for line in store.work.suspects(batch.id, 1, 10)] == [2, 1, 1]
    waiting = store.work.waiting(batch.id, 10, max_crashes=0)
    assert [line.number for line in waiting] == [4]


def test_an_orderly_stop_blames_nobody(store: Store) -> None:
    lease, batch = started(store, 2)
    store.work.dispatch(lease, [1, 2])
    store.work.release(lease)
    store.work.acquire("one", 100.0, 30.0, 5)
    assert store.work.suspects(batch.id, 1, 10) == []
    assert len(store.work.waiting(batch.id, 10)) == 2


def test_a_server_that_was_killed_from_outside_blames_its_own_lines_not_those_of_others(
    store: Store,
) -> None:
    own, own_batch = started(store, 1)  # held by "one"
    other_batch = create(store, add_file(store, 1))
    [(other, _)] = store.work.acquire("two", 100.0, 30.0, 5)
    store.work.begin_lines(other)
    store.work.add_lines(other, lines_of(other_batch.id, 1))
    store.work.start(other, "m", 101.0)
    for lease in (own, other):
        assert store.work.dispatch(lease, [1]) == {1}
    assert len(store.work.acquire("one", 200.0, 30.0, 5, blame_own=False)) == 2
    assert store.work.suspects(own_batch.id, 1, 5) == []
    assert [line.number for line in store.work.suspects(other_batch.id, 1, 5)] == [1]


def test_lines_come_in_the_order_of_their_keys(store: Store) -> None:
    _, batch = started(store, 7)
    waiting = store.work.waiting(batch.id, 10)
    assert [line.number for line in waiting] == [3, 6, 1, 4, 7, 2, 5]
    between = store.work.waiting(batch.id, 10, low=b"\x01", high=b"\x02")
    assert [line.number for line in between] == [1, 4, 7]
    third = waiting[2]
    behind = store.work.waiting(batch.id, 2, after=(third.order_key, third.number))
    assert [line.number for line in behind] == [4, 7]


def test_nothing_of_a_paused_or_cancelled_batch_is_started(store: Store) -> None:
    lease, batch = started(store, 2)
    store.batches.pause("", batch.id)
    assert store.work.dispatch(lease, [1]) == frozenset()
    store.batches.resume("", batch.id)
    assert store.work.dispatch(lease, [1]) == {1}
    store.batches.cancel("", batch.id, 110.0)
    assert store.work.dispatch(lease, [2]) == frozenset()


def test_a_cancel_keeps_what_finished_and_answers_the_rest(store: Store) -> None:
    lease, batch = started(store, 5)
    store.work.dispatch(lease, [1, 2])
    store.batches.cancel("", batch.id, 110.0)
    store.work.record(lease, [result(1)])  # completion racing the cancel: it came first
    answer = lambda line: result(line.number, ResultKind.ERROR, "cancelled")  # noqa: E731
    assert store.endings.answer_rest(lease, answer, limit=3) == 3
    assert store.endings.answer_rest(lease, answer, limit=3) == 1
    assert store.endings.answer_rest(lease, answer, limit=3) == 0
    store.work.record(lease, [result(2)])  # and one that came too late
    ended = store.endings.finish(lease, [], 111.0)
    assert ended.state is BatchState.CANCELLED
    assert (ended.counts.completed, ended.counts.failed) == (1, 4)
    assert [event.kind for event in store.outbox.claim(112.0, 10.0)] == ["batch.cancelled"]
    while store.endings.clean(limit=2):
        pass
    assert list(store.endings.results(batch.id, ResultKind.ERROR)) == []


def test_a_cancel_that_comes_while_finalizing_is_a_conflict(store: Store) -> None:
    lease, batch = started(store, 1)
    store.work.record(lease, [result(1)])
    store.endings.finalize(lease, BatchState.COMPLETED, 110.0)
    with pytest.raises(ConflictError, match="is finalizing"):
        store.batches.cancel("", batch.id, 111.0)
    assert store.endings.finish(lease, [], 112.0).completed_at == 112.0
    with pytest.raises(ConflictError, match="is completed"):
        store.batches.cancel("", batch.id, 113.0)


def test_a_cancel_that_comes_while_validating_wins(store: Store) -> None:
    batch = create(store, add_file(store))
    [(lease, _)] = store.work.acquire("one", 100.0, 30.0, 5)
    store.work.begin_lines(lease)
    store.work.add_lines(lease, lines_of(batch.id, 2))
    store.batches.cancel("", batch.id, 101.0)
    assert store.work.start(lease, "m", 102.0).state is BatchState.CANCELLING
    assert store.endings.answer_rest(lease, lambda line: result(line.number, ResultKind.ERROR)) == 2
    assert store.endings.finish(lease, [], 103.0).counts.failed == 2


def test_a_refused_file_leaves_its_errors_and_no_lines(store: Store) -> None:
    batch = create(store, add_file(store))
    [(lease, _)] = store.work.acquire("one", 100.0, 30.0, 5)
    store.work.add_lines(lease, lines_of(batch.id, 2))
    error = BatchError(code="invalid_json_line", message="no", line=3)
    failed = store.endings.refuse(lease, [error], 102.0)
    assert failed.state is BatchState.FAILED and failed.errors == (error,)
    assert store.work.waiting(batch.id, 5) == []
    assert store.work.acquire("one", 1e9, 30.0, 5) == []


def test_files_cannot_be_final_while_a_line_has_no_result(store: Store) -> None:
    lease, _ = started(store, 1)
    with pytest.raises(AssertionError, match="1 lines"):
        store.endings.finalize(lease, BatchState.COMPLETED, 110.0)
    store.endings.finalize(lease, BatchState.EXPIRED, 110.0)
    with pytest.raises(AssertionError, match="1 lines"):
        store.endings.finish(lease, [], 111.0)


@pytest.mark.slow
def test_several_servers_share_one_postgres_store(postgres_database: str, tmp_path: Path) -> None:
    stores = [open_store(tmp_path / str(number), postgres_database) for number in range(3)]
    for number in range(30):
        create(stores[0], add_file(stores[0], number))
    taken: list[list[str]] = [[], [], []]

    def work(number: int) -> None:
        while found := stores[number].work.acquire(f"server-{number}", 100.0, 30.0, 2):
            taken[number] += [batch.id for _, batch in found]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [batch_id for ids in taken for batch_id in ids]
    assert len(every) == len(set(every)) == 30
    stores[1].work.forget_leases("server-1")
    again = [batch.id for _, batch in stores[2].work.acquire("server-2", 101.0, 30.0, 30)]
    assert sorted(again) == sorted(taken[1])
    for store in stores:
        store.close()
