"""Deaths at the worst moments, one by one; the simulation finds the others."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from echo_sglang.service.answers import ResultMaker
from echo_sglang.service.contents import LocalContents
from echo_sglang.service.database import SQLITE_NAME
from echo_sglang.service.errors import LeaseLostError
from echo_sglang.service.files import Files
from echo_sglang.service.model import Batch, BatchState, Lease, NewBatch, ResultKind
from echo_sglang.service.phases import finish_batch, write_file
from echo_sglang.service.runner import Runner, RunnerSettings
from echo_sglang.service.store import Store, open_store, random_hex
from tests.unit.service.killable import WaitingEngine
from tests.unit.service.store_kit import result, started


class PowerLoss(BaseException):
    pass


def clock() -> float:
    return 1000.0


def ready_to_finish(store: Store) -> tuple[Lease, Batch]:
    lease, _ = started(store, 5)
    store.work.record(lease, [result(n) for n in (2, 4, 1)])
    store.work.record(lease, [result(3, ResultKind.ERROR)])
    return lease, store.endings.finalize(lease, BatchState.EXPIRED, 110.0)


def finish(store: Store, files: Files, lease: Lease, batch: Batch) -> Batch:
    return finish_batch(store, files, lease, batch, ResultMaker(random_hex), clock)


@pytest.mark.parametrize("deadly_sync", range(4))
def test_a_power_loss_while_finalizing_leaves_files_valid_to_the_byte(
    tmp_path: Path, deadly_sync: int
) -> None:
    """Two files, each synced and then its folder: four moments to die at."""
    syncs = 0

    def sync(_descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == deadly_sync + 1:
            raise PowerLoss

    store = open_store(tmp_path)
    lease, batch = ready_to_finish(store)
    contents = LocalContents(tmp_path / "files", fsync=sync)
    with pytest.raises(PowerLoss):
        finish(store, Files(store, tmp_path, clock=clock, contents=contents), lease, batch)
    store.close()
    for part in (tmp_path / "files").glob("*.part"):  # unsynced bytes may be there in part
        part.write_bytes(part.read_bytes()[:7])

    store = open_store(tmp_path)
    files = Files(store, tmp_path, clock=clock)
    store.work.forget_leases("one")
    [(lease, batch)] = store.work.acquire("one", 120.0, 30.0, 5)
    batch = finish(store, files, lease, batch)
    assert batch.state is BatchState.EXPIRED
    assert batch.output_file_id and batch.error_file_id
    output = b"".join(files.read(files.get("", batch.output_file_id)))
    assert output == b'{"custom_id": "c2"}\n{"custom_id": "c4"}\n{"custom_id": "c1"}\n'
    errors = b"".join(files.read(files.get("", batch.error_file_id)))
    assert [orjson.loads(raw)["custom_id"] for raw in errors.splitlines()] == ["c3", "c5"]
    store.close()


def test_a_stale_finisher_cannot_replace_the_whole_file_by_a_part(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    files = Files(store, tmp_path, clock=clock)
    old, batch = ready_to_finish(store)
    while store.endings.answer_rest(old, lambda line: result(line.number, ResultKind.ERROR)):
        pass
    known = store.work.held(old)
    [(new, _)] = store.work.acquire("two", old.until + 1, 30.0, 5)
    with pytest.raises(LeaseLostError):
        finish(store, files, old, batch)
    ended = finish(store, files, new, batch)
    path = tmp_path / "files" / ended.output_file
    whole = path.read_bytes()
    more = True
    while more:  # the old one wakes up at any stage of the cleaning, behind the fence's check
        with contextlib.suppress(LeaseLostError):
            write_file(store, files, known, ResultKind.OUTPUT)
        assert path.read_bytes() == whole
        more = bool(store.endings.clean(limit=1))
    with pytest.raises(LeaseLostError, match="has 0 results of 3: ended elsewhere"):
        write_file(store, files, known, ResultKind.OUTPUT)
    store.close()


@pytest.mark.parametrize(
    "tear",
    [
        lambda tail: tail,
        lambda tail: tail + b"\x00" * 5000,
        lambda tail: tail + tail[-4200:],
        lambda tail: tail + b"torn frame",
    ],
    ids=["nothing", "zeroes", "a frame twice", "rubbish"],
)
def test_what_was_acknowledged_survives_a_power_loss_and_a_torn_log(
    tmp_path: Path, tear: Callable[[bytes], bytes]
) -> None:
    store = open_store(tmp_path / "data")
    lease, batch = started(store, 5)
    store.work.record(lease, [result(1), result(2)])
    left = tmp_path / "left"
    shutil.copytree(tmp_path / "data", left)  # as the disk is at this moment
    store.close()
    log = left / f"{SQLITE_NAME}-wal"
    log.write_bytes(tear(log.read_bytes()))
    store = open_store(left)
    assert store.batches.get("", batch.id).counts.completed == 2
    lines = store.batches.result_lines(batch.id, ResultKind.OUTPUT, 0, 9)
    assert list(lines) == [b'{"custom_id": "c1"}', b'{"custom_id": "c2"}']
    store.close()


@pytest.mark.slow
def test_a_batch_runs_with_its_files_in_s3_and_its_rows_in_postgres(
    tmp_path: Path, s3_url: str, postgres_database: str
) -> None:
    store = open_store(tmp_path, postgres_database)
    files = Files(store, tmp_path, s3_url, clock=time.time)
    upload = files.begin("", "in.jsonl", "batch")
    for number in range(30):
        body = {"model": "m", "prompt": f"p{number}"}
        line = {"custom_id": f"c{number}", "method": "POST", "url": "/v1/completions", "body": body}
        upload.write(orjson.dumps(line) + b"\n")
    new = NewBatch(
        owner="",
        endpoint="/v1/completions",
        input_file_id=upload.finish().id,
        completion_window="24h",
        window_s=3600.0,
    )
    batch, _ = store.batches.create(new, time.time())

    async def run() -> None:
        settings = RunnerSettings(name="one", poll_s=0.05)
        runner = Runner(store, files, WaitingEngine(), settings, clock=time.time)
        running = asyncio.create_task(runner.run())
        while not store.batches.get("", batch.id).state.is_final:
            assert not running.done()
            await asyncio.sleep(0.05)
        await runner.stop()
        await running

    asyncio.run(asyncio.wait_for(run(), 60.0))
    batch = store.batches.get("", batch.id)
    assert batch.counts.completed == 30 and batch.output_file_id
    data = b"".join(files.read(files.get("", batch.output_file_id)))
    assert len({orjson.loads(raw)["custom_id"] for raw in data.splitlines()}) == 30
    assert list((tmp_path / "inputs").iterdir()) == []  # the working copy is gone
    store.close()
