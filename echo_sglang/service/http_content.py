"""Streams of file content: stored files from any line, result files that still grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.concurrency import iterate_in_threadpool

from echo_sglang.service.files import Files
from echo_sglang.service.model import Batch, FileObject, ResultKind
from echo_sglang.service.service import BatchService

_LINES_A_PAGE = 100


async def stored_bytes(files: Files, file: FileObject, first_line: int) -> AsyncIterator[bytes]:
    """The bytes of a file from that line (from 0) on."""
    skipped = 0
    async for piece in iterate_in_threadpool(files.read(file)):
        rest = piece
        while skipped < first_line and rest:
            _, newline, rest = rest.partition(b"\n")
            skipped += len(newline)
        if rest:
            yield rest


async def growing_lines(
    service: BatchService, owner: str, batch: Batch, kind: ResultKind, first_line: int
) -> AsyncIterator[bytes]:
    """The lines that `batch`, as it was read, had of this kind, from `first_line` (from 0) on."""
    output = kind is ResultKind.OUTPUT
    end = batch.counts.completed if output else batch.counts.failed
    line = first_line
    while line < end:
        limit = min(_LINES_A_PAGE, end - line)
        page = await asyncio.to_thread(
            service.store.batches.result_lines, batch.id, kind, line, limit
        )
        if not page:
            break
        line += len(page)
        yield b"".join(payload + b"\n" for payload in page)
    if line < end:
        # The batch has ended meanwhile: its lines are in the file now, in the same order.
        file_id = batch.output_file if output else batch.error_file
        file = await asyncio.to_thread(service.files.get, owner, file_id)
        async for piece in _first_lines(stored_bytes(service.files, file, line), end - line):
            yield piece


async def peeked(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces, the first one read already: what is wrong with a file is known before
    the answer begins."""
    try:
        first = await anext(pieces)
    except StopAsyncIteration:
        first = b""

    async def all_pieces() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return all_pieces()


async def _first_lines(pieces: AsyncIterator[bytes], count: int) -> AsyncIterator[bytes]:
    async for piece in pieces:
        lines = piece.split(b"\n", count)
        if len(lines) > count:
            yield piece[: len(piece) - len(lines[count])]
            return
        count -= len(lines) - 1
        yield piece
