"""Batches as the API makes, pages and changes them, on every database."""

from __future__ import annotations

import threading

import pytest

from echo_sglang.service.errors import (
    ConflictError,
    IdempotencyError,
    InvalidInputError,
    NotFoundError,
)
from echo_sglang.service.model import BatchState, IdempotencyKey
from echo_sglang.service.store import Store
from tests.unit.service.store_kit import add_file, create, result, started


def test_one_idempotency_key_makes_one_batch(store: Store) -> None:
    file = add_file(store)
    key = IdempotencyKey(key="k", body_digest="a")
    batch = create(store, file, key=key)
    assert create(store, file, now=200.0, key=key) == batch
    with pytest.raises(IdempotencyError, match="from another request body"):
        create(store, file, key=IdempotencyKey(key="k", body_digest="b"))
    other = add_file(store, 1, owner="other")
    assert create(store, other, key=key).id != batch.id


def test_a_refused_request_does_not_use_up_its_idempotency_key(store: Store) -> None:
    key = IdempotencyKey(key="k", body_digest="a")
    wrong = add_file(store, 1, purpose="batch_output")
    with pytest.raises(InvalidInputError, match="upload it with purpose 'batch'"):
        create(store, wrong, key=key)
    assert create(store, add_file(store, 2), key=key).state is BatchState.VALIDATING


def test_the_same_key_at_the_same_time_makes_one_batch(store: Store) -> None:
    file = add_file(store)
    key = IdempotencyKey(key="k", body_digest="a")
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(create(store, file, key=key).id))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len(set(made)) == 1
    assert len(store.batches.page("", limit=10)[0]) == 1


def test_pages_cover_every_batch_once_newest_first(store: Store) -> None:
    file = add_file(store)
    made = [create(store, file, now=100.0 + number // 2).id for number in range(7)]
    seen: list[str] = []
    more, after = True, None
    while more:
        page, more = store.batches.page("", limit=3, after=after)
        seen += [batch.id for batch in page]
        after = seen[-1]
    assert sorted(seen) == sorted(made)
    created = [store.batches.get("", batch_id).created_at for batch_id in seen]
    assert created == sorted(created, reverse=True)
    with pytest.raises(InvalidInputError, match="no batch"):
        store.batches.page("", limit=3, after="batch_" + "0" * 32)


@pytest.mark.parametrize("bad_id", ["../x", "batch_\x00", "", "batch_" + "g" * 32, "x" * 9999])
def test_an_id_that_no_server_made_is_not_found(store: Store, bad_id: str) -> None:
    for look in (
        lambda: store.batches.get("", bad_id),
        lambda: store.batches.cancel("", bad_id, 1.0),
        lambda: store.files.get("", bad_id),
        lambda: store.batches.by_result_file("", bad_id),
    ):
        with pytest.raises(NotFoundError):
            look()


def test_what_belongs_to_another_tenant_is_not_found(store: Store) -> None:
    batch = create(store, add_file(store))
    for look in (
        lambda: store.batches.get("mallory", batch.id),
        lambda: store.batches.cancel("mallory", batch.id, 1.0),
        lambda: store.batches.pause("mallory", batch.id),
        lambda: store.files.get("mallory", batch.input_file_id),
        lambda: store.files.remove("mallory", batch.input_file_id),
    ):
        with pytest.raises(NotFoundError):
            look()
    assert store.batches.page("mallory", limit=5) == ([], False)


def test_the_input_file_stays_until_the_batch_has_ended(store: Store) -> None:
    lease, batch = started(store, 1)
    with pytest.raises(ConflictError, match="which has not ended"):
        store.files.remove("", batch.input_file_id)
    assert store.files.expired(1e12) == []
    store.work.record(lease, [result(1)])
    store.endings.finalize(lease, BatchState.COMPLETED, 110.0)
    store.endings.finish(lease, [], 111.0)
    assert store.files.remove("", batch.input_file_id).id == batch.input_file_id


def test_a_webhook_is_offered_to_one_sender_and_again_when_it_failed(store: Store) -> None:
    _, batch = started(store, 1)
    store.batches.cancel("", batch.id, 102.0)
    [(lease, _)] = store.work.acquire("one", 1000.0, 30.0, 5)
    store.work.record(lease, [result(1)])
    store.endings.finish(lease, [], 1001.0)
    [event] = store.outbox.claim(1001.0, hold_s=60.0)
    assert (event.kind, event.batch_id, event.attempts) == ("batch.cancelled", batch.id, 0)
    assert store.outbox.claim(1060.0, hold_s=60.0) == []
    store.outbox.retry_at(event.id, 1070.0)
    assert store.outbox.claim(1069.0, hold_s=60.0) == []
    [again] = store.outbox.claim(1070.0, hold_s=60.0)
    assert again.attempts == 1
    store.outbox.sent(event.id)
    assert store.outbox.claim(9999.0, hold_s=60.0) == []


def test_old_batches_and_keys_are_forgotten(store: Store) -> None:
    file = add_file(store)
    key = IdempotencyKey(key="k", body_digest="a")
    batch = create(store, file, key=key)
    store.batches.cancel("", batch.id, 101.0)
    [(lease, _)] = store.work.acquire("one", 102.0, 30.0, 5)
    store.endings.finish(lease, [], 103.0)
    assert store.batches.forget(103.0) == 0
    assert store.batches.forget(103.5) == 1
    with pytest.raises(NotFoundError):
        store.batches.get("", batch.id)
    assert create(store, file, now=200.0, key=key).id != batch.id
