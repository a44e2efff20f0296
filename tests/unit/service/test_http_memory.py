"""The largest file there may be: memory is bounded by lines in flight, not by its size."""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import pytest

from tests.unit.service.http_kit import CHAT, served, wanted

pytestmark = pytest.mark.slow

NUM_LINES = 50_000
LINE_BYTES = 4_000
MAX_EXTRA_MB = 300


def serve(data_dir: Path, pipe: Connection) -> None:
    with served(data_dir) as (url, _):
        pipe.send(url)
        pipe.recv()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """URL and process id of a server in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(tmp_path, there))
    process.start()
    try:
        assert here.poll(120)
        assert process.pid is not None
        yield here.recv(), process.pid
    finally:
        here.send("end")
        process.join(30)
        process.kill()


def form() -> Iterator[bytes]:
    yield b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    for number in range(NUM_LINES):
        head = b'{"custom_id":"%d","method":"POST","url":"%s","body":{"model":"m","text":"'
        text = head % (number, CHAT.encode())
        yield text + b"x" * (LINE_BYTES - len(text) - 4) + b'"}}\n'
    yield b"\r\n--B--\r\n"


def peak_mb(pid: int) -> float:
    """Most memory that the process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def test_two_hundred_megabytes_go_through_in_little_memory(server: tuple[str, int]) -> None:
    url, pid = server
    before = peak_mb(pid)
    with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
        kind = {"Content-Type": "multipart/form-data; boundary=B"}
        uploaded = client.post("/v1/files", content=form(), headers=kind).json()
        assert uploaded["bytes"] == NUM_LINES * LINE_BYTES == 200_000_000
        batch_id = client.post("/v1/batches", json=wanted(uploaded["id"])).json()["id"]
        path = f"/v1/batches/{batch_id}"
        while client.get(path).json()["request_counts"]["completed"] < 500:
            time.sleep(0.1)
        client.post(f"{path}/cancel")
        while (batch := client.get(path).json())["status"] != "cancelled":
            time.sleep(0.1)
        counts = batch["request_counts"]
        assert counts["total"] == counts["completed"] + counts["failed"] == NUM_LINES
        num_rows = 0
        for name in ("output_file_id", "error_file_id"):
            with client.stream("GET", f"/v1/files/{batch[name]}/content") as answer:
                num_rows += sum(piece.count(b"\n") for piece in answer.iter_bytes())
        assert num_rows == NUM_LINES
        content = f"/v1/files/{uploaded['id']}/content"
        with client.stream("GET", content) as stalled, client.stream("GET", content) as answer:
            # A reader that takes one piece and no more holds up nobody and costs no memory.
            assert next(stalled.iter_raw())
            assert sum(len(piece) for piece in answer.iter_bytes()) == 200_000_000
    assert peak_mb(pid) - before < MAX_EXTRA_MB
