"""Offline requests are prepared one at a time, so that online ones get through between them.

SGLang's API process turns text into tokens in its event loop, request by request in order of
arrival: a thousand offline requests sent at once keep an online one that comes after them waiting
for seconds. Here an offline request waits for its turn before it is prepared, and gives the turn
on when it has gone to the scheduler; between two turns the loop serves everybody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

LONGEST_TURN_S = 0.1
"""Who waits for something else meanwhile, such as an image, lets the next one go ahead."""

SEND = "sglang.srt.managers.tokenizer_manager.TokenizerManager._send_one_request"


class Turn:
    """The right to be prepared; over once, however often it is ended."""

    def __init__(self, gate: asyncio.Semaphore) -> None:
        self._gate: asyncio.Semaphore | None = gate
        self._limit = asyncio.get_running_loop().call_later(LONGEST_TURN_S, self.end)

    def end(self) -> None:
        """Let the next one in."""
        gate, self._gate = self._gate, None
        if gate is not None:
            self._limit.cancel()
            gate.release()


_gates: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
_turn: ContextVar[Turn | None] = ContextVar("echo_turn", default=None)


@asynccontextmanager
async def turn_if(offline: bool) -> AsyncIterator[None]:
    """A turn for what is prepared and sent inside, if it is offline. It is waited for."""
    if not offline:
        yield
        return
    gate = _gates.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(1))
    await gate.acquire()
    turn = Turn(gate)
    _turn.set(turn)
    try:
        yield
    finally:
        turn.end()
        _turn.set(None)


async def answers_in_turn(answers: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """`answers`, an async generator that prepares and sends offline requests when it is first
    asked; it is closed with this one."""
    try:
        async with turn_if(True):
            answer = await anext(answers, None)
        while answer is not None:
            yield answer
            answer = await anext(answers, None)
    finally:
        await answers.aclose()  # type: ignore[attr-defined]


async def end_turn(send: Callable[..., Any], manager: Any, tokenized: Any) -> Any:
    """Around `TokenizerManager._send_one_request`: others go on before the next of a list."""
    sent = await send(manager, tokenized)
    turn = _turn.get()
    if turn is not None:
        turn.end()
        await asyncio.sleep(0)
    return sent
