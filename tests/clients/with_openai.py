"""The newest openai: files, batches, pages, errors, both clients."""

from __future__ import annotations

import asyncio
import time

import openai
from client_kit import CHAT, base_url, check_output, input_lines

FINAL = ("completed", "failed", "expired", "cancelled")


def run_batch(client: openai.OpenAI) -> None:
    source = client.files.create(
        file=("in.jsonl", input_lines(20)),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert client.files.wait_for_processing(source.id).status == "processed"
    assert source.expires_at is not None and source.expires_at - source.created_at == 3600
    assert client.files.content(source.id).read() == input_lines(20)
    batch = client.batches.create(
        input_file_id=source.id,
        endpoint=CHAT,
        completion_window="24h",
        metadata={"purpose": "test"},
    )
    while batch.status not in FINAL:
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed", batch
    assert batch.request_counts is not None and batch.request_counts.completed == 20
    assert batch.error_file_id is None and batch.output_file_id is not None
    check_output(client.files.content(batch.output_file_id).text, 20)
    for file_id in (source.id, batch.output_file_id):
        assert client.files.delete(file_id).deleted


def go_through_pages(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{n}.jsonl", b"\n"), purpose="batch").id for n in range(5)]
    batches = [
        client.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h").id
        for file_id in made
    ]
    assert [file.id for file in client.files.list(limit=2, order="desc")][:5] == made[::-1]
    assert [batch.id for batch in client.batches.list(limit=2)][:5] == batches[::-1]


def meet_errors(client: openai.OpenAI) -> None:
    for call, error, code in (
        (lambda: client.batches.retrieve("batch_x"), openai.NotFoundError, "not_found"),
        (
            lambda: client.files.create(file=("in.txt", b"x"), purpose="batch"),
            openai.BadRequestError,
            "invalid_value",
        ),
        (lambda: client.files.retrieve("file-x"), openai.NotFoundError, "not_found"),
    ):
        try:
            call()
        except error as met:
            assert met.code == code, met
        else:
            raise AssertionError(f"no {error.__name__}")


async def run_async() -> None:
    async with openai.AsyncOpenAI(base_url=base_url(), api_key="none") as client:
        source = await client.files.create(file=("in.jsonl", input_lines(2)), purpose="batch")
        batch = await client.batches.create(
            input_file_id=source.id, endpoint=CHAT, completion_window="24h"
        )
        try:
            batch = await client.batches.cancel(batch.id)
            assert batch.status in ("cancelling", "cancelled")
        except openai.ConflictError:
            pass
        assert len([file async for file in client.files.list(limit=1)]) >= 1


with openai.OpenAI(base_url=base_url(), api_key="none") as sync_client:
    run_batch(sync_client)
    go_through_pages(sync_client)
    meet_errors(sync_client)
asyncio.run(run_async())
