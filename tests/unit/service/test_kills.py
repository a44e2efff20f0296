"""kill -9 of real processes on a real disk."""

from __future__ import annotations

import time
from multiprocessing import get_context
from pathlib import Path
from random import Random

import orjson
import pytest

from echo_sglang.service.errors import StoreInUseError
from echo_sglang.service.files import Files
from echo_sglang.service.model import Batch, NewBatch
from echo_sglang.service.store import open_store
from tests.unit.service.killable import serve

LINES = 1_000
KILLS = 100


def submit(folder: Path) -> Batch:
    store = open_store(folder)
    upload = Files(store, folder, clock=time.time).begin("", "in.jsonl", "batch")
    for number in range(LINES):
        body = {"model": "m", "prompt": f"p{number}"}
        line = {
            "custom_id": f"c{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": body,
        }
        upload.write(orjson.dumps(line) + b"\n")
    new = NewBatch(
        owner="",
        endpoint="/v1/completions",
        input_file_id=upload.finish().id,
        completion_window="24h",
        window_s=86_400.0,
    )
    batch, _ = store.batches.create(new, time.time())
    store.close()
    return batch


def state(folder: Path, batch: Batch) -> Batch:
    """What the store says; its owner was just killed and the kernel may still let go of it."""
    for _ in range(500):
        try:
            store = open_store(folder)
        except StoreInUseError:
            time.sleep(0.01)
            continue
        found = store.batches.get("", batch.id)
        store.close()
        return found
    raise AssertionError("the folder stays locked")


@pytest.mark.slow
def test_a_thousand_lines_survive_a_hundred_kills(tmp_path: Path) -> None:
    chance = Random(7)
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.service.killable"])
    batch = submit(tmp_path)
    kills = unfinished_kills = 0
    while True:
        server = context.Process(target=serve, args=(tmp_path,))
        server.start()
        server.join(chance.uniform(0.02, 0.25) if kills < KILLS else 5.0)
        server.kill()
        server.join()
        kills += 1
        batch = state(tmp_path, batch)
        unfinished_kills += not batch.state.is_final
        if batch.state.is_final:
            break
        assert kills < 10 * KILLS, f"does not come to an end: {batch}"
    assert unfinished_kills >= KILLS
    store = open_store(tmp_path)
    files = Files(store, tmp_path, clock=time.time)
    assert (batch.counts.completed, batch.counts.failed) == (LINES, 0)
    assert batch.output_file_id is not None
    data = b"".join(files.read(files.get("", batch.output_file_id)))
    entries = [orjson.loads(raw) for raw in data.splitlines()]
    assert sorted(entry["custom_id"] for entry in entries) == sorted(
        f"c{number}" for number in range(LINES)
    )
    for entry in entries:
        assert entry["response"]["body"]["echo"] == "p" + entry["custom_id"][1:]
    store.close()
