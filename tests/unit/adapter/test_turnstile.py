"""Offline requests are prepared one at a time, and whoever else is there gets through between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from echo_sglang.adapter import turnstile
from echo_sglang.adapter.turnstile import answers_in_turn, end_turn, turn_if

FLOOD = 200
ONLINE_STEPS = 10


class Api:
    """What SGLang's API process does with a request, without the text. sent: ids, in order."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.preparing = self.most_preparing = 0

    async def send(self, rid: str) -> None:
        """As `TokenizerManager._send_one_request`, with its hook."""

        async def dispatch(manager: Any, tokenized: Any) -> None:
            self.sent.append(tokenized)

        await end_turn(dispatch, self, rid)

    async def handle(self, rid: str, *, offline: bool, steps: int = 1) -> None:
        """As an endpoint: some steps of the event loop, then the request goes out and is answered
        much later."""
        for _ in range(steps):
            await asyncio.sleep(0)
        async with turn_if(offline):
            self.preparing += offline
            self.most_preparing = max(self.most_preparing, self.preparing)
            await asyncio.sleep(0)
            self.preparing -= offline
            await self.send(rid)
            await asyncio.sleep(0.02)

    async def generate(self, rids: list[str]) -> AsyncIterator[str]:
        """As `TokenizerManager.generate_request`: a list of prompts, answers at the end."""
        for rid in rids:
            await self.send(rid)
        for rid in rids:
            await asyncio.sleep(0)
            yield rid


def test_an_online_request_passes_a_flood() -> None:
    async def play(api: Api) -> None:
        offline = [api.handle(f"off-{i}", offline=True) for i in range(FLOOD)]
        await asyncio.gather(*offline, api.handle("on", offline=False, steps=ONLINE_STEPS))

    api = Api()
    asyncio.run(play(api))
    assert api.sent.index("on") <= 2 * ONLINE_STEPS
    assert [rid for rid in api.sent if rid != "on"] == [f"off-{i}" for i in range(FLOOD)]
    assert api.most_preparing == 1


def test_answers_are_awaited_at_the_same_time() -> None:
    """A turn ends with the sending: with 200 answers one after the other this took 4 s."""

    async def play(api: Api) -> None:
        flood = [asyncio.create_task(api.handle(f"{i}", offline=True)) for i in range(FLOOD)]
        await asyncio.sleep(0)
        while len(api.sent) < FLOOD:
            await asyncio.sleep(0)
        assert not all(task.done() for task in flood)
        await asyncio.gather(*flood)

    asyncio.run(play(Api()))


@pytest.mark.parametrize("fault", [ValueError("too long"), asyncio.CancelledError()])
def test_who_fails_gives_the_turn_on(fault: BaseException) -> None:
    async def failing() -> None:
        async with turn_if(True):
            raise fault

    async def play(api: Api) -> None:
        failed = await asyncio.gather(failing(), failing(), return_exceptions=True)
        assert [type(error) for error in failed] == [type(fault)] * 2
        await api.handle("next", offline=True)

    api = Api()
    asyncio.run(play(api))
    assert api.sent == ["next"]


def test_who_leaves_while_waiting_takes_no_turn() -> None:
    async def play(api: Api) -> None:
        async with turn_if(True):
            gone = asyncio.create_task(api.handle("gone", offline=True))
            waits = asyncio.create_task(api.handle("waits", offline=True))
            await asyncio.sleep(0.01)
            gone.cancel()
        await waits

    api = Api()
    asyncio.run(play(api))
    assert api.sent == ["waits"]


def test_who_waits_for_something_else_lets_others_go_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turnstile, "LONGEST_TURN_S", 0.01)
    api = Api()

    async def slow(image: asyncio.Event) -> None:
        async with turn_if(True):
            await image.wait()
            await api.send("slow")

    async def play() -> None:
        image = asyncio.Event()
        first = asyncio.create_task(slow(image))
        await asyncio.sleep(0)
        await api.handle("quick", offline=True)
        image.set()
        await first

    asyncio.run(play())
    assert api.sent == ["quick", "slow"]


def test_a_list_of_prompts_lets_others_in_between() -> None:
    rids = [f"off-{i}" for i in range(FLOOD)]

    async def play(api: Api) -> list[str]:
        online = asyncio.create_task(api.handle("on", offline=False, steps=ONLINE_STEPS))
        answers = [answer async for answer in answers_in_turn(api.generate(rids))]
        await online
        return answers

    api = Api()
    assert asyncio.run(play(api)) == rids
    assert api.sent.index("on") <= 2 * ONLINE_STEPS


def test_a_generator_that_is_closed_gives_the_turn_on_and_is_closed_too() -> None:
    closed: list[bool] = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async def play(api: Api) -> None:
        answers = answers_in_turn(endless())
        assert await anext(answers) == 1
        await answers.aclose()  # type: ignore[attr-defined]
        await api.handle("next", offline=True)

    api = Api()
    asyncio.run(play(api))
    assert closed == [True]
    assert api.sent == ["next"]
