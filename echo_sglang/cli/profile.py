"""echo-sglang profile: lead an idle server through a designed load, for its step trace."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from echo_sglang.cli.driver import SweepDriver
from echo_sglang.cli.output import JsonFlag, print_facts, print_json, refuses_clearly
from echo_sglang.cli.sweep import (
    CHUNK_SHARE,
    KV_SHARE,
    LEAST_CHUNK_S,
    LEAST_KV_S,
    LEAST_ROWS_S,
    ROWS_SHARE,
    Limits,
    Reach,
    Scene,
    affordable_kv,
    corner_scenes,
    longest_prompt,
    most_short_rows,
    next_rung,
    prompt_scene,
    random_scenes,
    rows_scene,
    short_rows_scene,
)


@refuses_clearly
def profile(
    url: Annotated[str, typer.Argument(help="The server, for example http://127.0.0.1:30000.")],
    seconds: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Stop after about this long, but not before the corners are played. Their chunks "
            "and rows are those that a small part of it is enough for, and a least number of "
            "seconds: on a CPU they alone take about 100 s.",
        ),
    ] = 180.0,
    seed: Annotated[int, typer.Option(help="Chooses the scenes between the corners.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Drive an idle server, started with --echo-trace, through all kinds of iterations.

    Then train on the trace that it wrote: echo-sglang train TRACE -o PROFILE.json
    """
    result = asyncio.run(_sweep(url, seconds, seed, quiet=as_json))
    if as_json:
        print_json(result)
        return
    print_facts({key: value for key, value in result.items() if key != "limits"})
    _tell_of_what_was_left(result, seconds)
    print("\nThe iterations are in the file that the server was given with --echo-trace.")


def _tell_of_what_was_left(result: dict[str, Any], seconds: float) -> None:
    """Say which iterations the server allows that were too slow to be swept."""
    limits = result["limits"]
    flags = {
        "rows": "--max-running-requests",
        "chunk_tokens": "--chunked-prefill-size",
        "kv_tokens": "--max-total-tokens",
    }
    for name, flag in flags.items():
        if result[name] < limits[name]:
            print(
                f"\nMore {name.replace('_', ' ')} than {result[name]} were too slow for a sweep of "
                f"{seconds:g} seconds; the server allows {limits[name]}. Iterations with more are "
                "a guess of the profile: give it more --seconds, or the server a smaller "
                f"{flag}."
            )


async def _sweep(url: str, seconds: float, seed: int, *, quiet: bool) -> dict[str, Any]:
    # Tokens must be new to the server's cache; only the sizes of the scenes follow the seed.
    async with SweepDriver(url.rstrip("/"), random.Random()) as driver:
        limits = await driver.open()
        first = await driver.status()
        with _progress(quiet) as progress:
            sweep = _Sweep(driver, seconds, progress)
            within = await sweep.climb(limits)
            for scene in corner_scenes(within):
                await sweep.play(scene)
            drawn = random_scenes(within, random.Random(seed))
            while sweep.elapsed_s < seconds:
                await sweep.play(next(drawn))
        last = await driver.status()
    before, after = first["step_trace"], last["step_trace"]
    return {
        "scenes": sweep.played,
        "rows": within.rows,
        "chunk_tokens": within.chunk_tokens,
        "kv_tokens": within.kv_tokens,
        "long_rows": within.long_rows,
        "iterations": after["rows_recorded"] - before["rows_recorded"],
        "dropped": after["rows_dropped"] - before["rows_dropped"],
        "seconds": round(sweep.elapsed_s, 1),
        "seed": seed,
        "limits": asdict(limits),
    }


class _Sweep:
    """Plays scenes, counts them and shows how far it is. seconds: what the user asked for."""

    def __init__(self, driver: SweepDriver, seconds: float, progress: Progress) -> None:
        self.played = 0
        self._driver = driver
        self._seconds = seconds
        self._progress = progress
        self._task = progress.add_task("starting", total=seconds)
        self._begin_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self._begin_s

    async def play(self, scene: Scene) -> float:
        """Returns how long it took."""
        done_s = min(self.elapsed_s, self._seconds)
        self._progress.update(self._task, completed=done_s, description=scene.name)
        start_s = time.monotonic()
        await self._driver.play(scene)
        self.played += 1
        return time.monotonic() - start_s

    async def climb(self, limits: Limits) -> Reach:
        """Larger and larger chunks, then more and more rows, short ones and long ones, as far as
        the time asked for can afford."""
        allowed_s = max(CHUNK_SHARE * self._seconds, LEAST_CHUNK_S)
        chunk, took_s = await self._reach(prompt_scene, limits.longest_chunk, allowed_s)
        kv = affordable_kv(limits, chunk, took_s, max(KV_SHARE * self._seconds, LEAST_KV_S))
        within = replace(limits, chunk_tokens=chunk, kv_tokens=kv)
        self._driver.take_stem(within.stem_tokens)
        await self.play(longest_prompt(within))
        allowed_s = max(ROWS_SHARE * self._seconds, LEAST_ROWS_S)
        rows, _ = await self._reach(short_rows_scene, most_short_rows(within), allowed_s)
        long_rows, _ = await self._reach(partial(rows_scene, within), rows, allowed_s)
        return Reach(**(asdict(within) | {"rows": rows, "long_rows": long_rows}))

    async def _reach(
        self, scene_of: Callable[[int], Scene], most: int, allowed_s: float
    ) -> tuple[int, float]:
        """How far it went, and how long that took."""
        reached, following, took_s = 0, 1, 0.0
        while following > reached:
            reached = following
            took_s = await self.play(scene_of(reached))
            following = next_rung(reached, took_s, most=most, allowed_s=allowed_s)
        return reached, took_s


def _progress(quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description:24}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
