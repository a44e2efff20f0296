"""Plays scenes of a sweep to a running server over HTTP."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx

from echo_sglang.cli.sweep import Limits, Prompt, Scene
from echo_sglang.errors import ServerError

REQUEST_TIMEOUT_S = 600.0
STATUS_TIMEOUT_S = 30.0
IDLE_POLLS = 100
IDLE_POLL_S = 0.05
NO_HURRY = {"ttft_ms": 3_600_000, "tpot_ms": 3_600_000}
"""An SLO of an hour: nothing is cut, delayed or released for a scene's sake."""

FIRST_TOKEN_ID = 100
"""Smaller ids are often special tokens."""


class SweepDriver:
    """Drives one server. Use as an asynchronous context manager.

    rng: makes the tokens; they must differ from earlier ones, or they are cached already.
    Every method raises ServerError if the server does not do its part.
    """

    def __init__(
        self,
        base_url: str,
        rng: random.Random,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._base_url = base_url
        self._rng = rng
        self._client = httpx.AsyncClient(
            base_url=base_url,
            timeout=REQUEST_TIMEOUT_S,
            # A kept connection may be closed by the server in the moment it is used again.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            transport=transport,
            trust_env=False,
        )
        self._stem: list[int] = []
        self._vocabulary = 0

    async def __aenter__(self) -> SweepDriver:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def open(self) -> Limits:
        """The limits of a server that is idle and writes a step trace; refuses any other."""
        status = await self.status()
        trace = status.get("step_trace")
        if not trace:
            raise ServerError(
                f"{self._base_url} writes no step trace: start it with --echo-trace PATH"
            )
        if trace.get("error"):
            raise ServerError(f"{self._base_url} switched its step trace off: {trace['error']}")
        busy = _busy(status)
        if busy:
            raise ServerError(
                f"{self._base_url} is busy ({busy}): a profile needs it alone; try again when "
                "nothing runs or waits"
            )
        limits = Limits.of(status.get("limits") or {})
        self._vocabulary = limits.vocabulary
        return limits

    def take_stem(self, tokens: int) -> None:
        """From now on the prefix that prompts share is one of so many tokens, a new one."""
        self._stem = self._tokens(tokens)

    async def play(self, scene: Scene) -> None:
        """Play one scene, until the server is idle again."""
        await self._scene(scene)
        await self._until_idle()

    async def status(self) -> dict[str, Any]:
        """GET /echo/status of one engine."""
        try:
            response = await self._client.get("/echo/status", timeout=STATUS_TIMEOUT_S)
            found = response.json() if response.status_code == httpx.codes.OK else None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ServerError(
                f"{self._base_url}/echo/status gives no answer ({type(error).__name__}: {error}); "
                "is the server up, and is this its address?"
            ) from error
        if not isinstance(found, dict):
            raise ServerError(
                f"{self._base_url}/echo/status answered {response.status_code} "
                f"{response.text[:80]!r}: expected one server of this project, without --echo-off, "
                "one rank"
            )
        return found

    async def _scene(self, scene: Scene) -> None:
        decoding = [asyncio.Event() for _ in range(scene.rows)]
        rows = [
            asyncio.create_task(
                self._generate([*self._stem[:shared], *self._tokens(own)], scene.outputs, event)
            )
            for (shared, own), event in zip(scene.kv_of_rows(), decoding, strict=True)
        ]
        try:
            for event in decoding:
                await event.wait()
            for group in scene.groups:
                await asyncio.gather(*(self._generate(self._text(one), 1) for one in group))
            await asyncio.gather(*rows)
        finally:
            for row in rows:
                row.cancel()
            await asyncio.gather(*rows, return_exceptions=True)

    def _text(self, prompt: Prompt) -> list[int]:
        return [*self._stem[: prompt.prefix_tokens], *self._tokens(prompt.chunk_tokens)]

    def _tokens(self, count: int) -> list[int]:
        low = min(FIRST_TOKEN_ID, self._vocabulary - 1)
        return [self._rng.randrange(low, self._vocabulary) for _ in range(count)]

    async def _generate(
        self, tokens: list[int], outputs: int, first: asyncio.Event | None = None
    ) -> None:
        """One request to its end. first: is set at its first token, or when it ends."""
        body = {
            "input_ids": tokens,
            "sampling_params": {"max_new_tokens": outputs, "ignore_eos": True, "temperature": 0},
            "echo": NO_HURRY,
            "stream": True,
        }
        try:
            async with self._client.stream("POST", "/generate", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    text = (await response.aread()).decode(errors="replace")
                    raise ServerError(
                        f"/generate answered {response.status_code} to {len(tokens)} tokens: "
                        f"{text[:200]!r}"
                    )
                async for line in response.aiter_lines():
                    if first is not None and line.startswith("data:"):
                        first.set()
        except httpx.HTTPError as error:
            raise ServerError(
                f"/generate with {len(tokens)} tokens failed ({type(error).__name__}: {error}); "
                "see the server's log"
            ) from error
        finally:
            if first is not None:
                first.set()

    async def _until_idle(self) -> None:
        for _ in range(IDLE_POLLS):
            busy = _busy(await self.status())
            if not busy:
                return
            await asyncio.sleep(IDLE_POLL_S)
        raise ServerError(
            f"{self._base_url} did not become idle between two scenes ({busy}): something else "
            "uses it; a profile needs it alone"
        )


def _busy(status: dict[str, Any]) -> str:
    """What runs or waits, in words; empty for an idle server."""
    requests: dict[str, int] = status.get("requests") or {}
    return ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in requests.items() if count
    )
