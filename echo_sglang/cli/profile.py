"""echo-sglang profile: lead an idle server through a designed load, for its step trace."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
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
    LEAST_CHUNK_S,
    LEAST_ROWS_S,
    ROWS_SHARE,
    Limits,
    Scene,
    corner_scenes,
    longest_prompt,
    next_rung,
    prompt_scene,
    random_scenes,
    rows_scene,
)


@refuses_clearly
def profile(
    url: Annotated[str, typer.Argument(help="The server, for example http://127.0.0.1:30000.")],
    seconds: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Stop after about this long. The corners are always played, but only with chunks "
            "and rows that a small part of it is enough for.",
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
    flags = {"rows": "--max-running-requests", "chunk_tokens": "--chunked-prefill-size"}
    for name, flag in flags.items():
        if result[name] < limits[name]:
            print(
                f"\nMore {name.replace('_', ' ')} than {result[name]} were too slow for a sweep of "
                f"{seconds:g} seconds; the server allows {limits[name]}. Iterations with more are "
                "a guess of the profile: give it more --seconds, or the server a smaller "
                f"{flag}."
            )


async def _sweep(url: str, seconds: float, seed: int, *, quiet: bool) -> dict[str, Any]:
    begin_s = time.monotonic()
    # Tokens must be new to the server's cache; only the sizes of the scenes follow the seed.
    async with SweepDriver(url.rstrip("/"), random.Random()) as driver:
        limits = await driver.open()
        first = await driver.status()
        with _progress(quiet) as progress:
            task = progress.add_task("starting", total=seconds)

            def told(scene: Scene) -> float:
                elapsed_s = time.monotonic() - begin_s
                progress.update(task, completed=min(elapsed_s, seconds), description=scene.name)
                return elapsed_s

            async def play_all(scenes: list[Scene]) -> int:
                return await driver.play(scenes, more=lambda scene: told(scene) >= 0.0)

            scenes, within = await _climb(driver, limits, seconds, play_all)
            scenes += await play_all(corner_scenes(within))
            drawn = random_scenes(within, random.Random(seed))
            scenes += await driver.play(drawn, more=lambda scene: told(scene) < seconds)
            progress.update(task, completed=seconds, description="done")
        last = await driver.status()
    before, after = first["step_trace"], last["step_trace"]
    return {
        "scenes": scenes,
        "rows": within.rows,
        "chunk_tokens": within.chunk_tokens,
        "iterations": after["rows_recorded"] - before["rows_recorded"],
        "dropped": after["rows_dropped"] - before["rows_dropped"],
        "seconds": round(time.monotonic() - begin_s, 1),
        "seed": seed,
        "limits": asdict(limits),
    }


async def _climb(
    driver: SweepDriver,
    limits: Limits,
    seconds: float,
    play: Callable[[list[Scene]], Awaitable[int]],
) -> tuple[int, Limits]:
    """Play larger and larger chunks, then more and more rows, as far as a sweep of `seconds` can
    afford. Returns how many scenes there were and the limits that were reached."""
    scenes = 0

    async def climb(scene_of: Callable[[int], Scene], most: int, allowed_s: float) -> int:
        nonlocal scenes
        reached, following = 0, 1
        while following > reached:
            reached, start_s = following, time.monotonic()
            scenes += await play([scene_of(reached)])
            took_s = time.monotonic() - start_s
            following = next_rung(reached, took_s, most=most, allowed_s=allowed_s)
        return reached

    allowed_s = max(CHUNK_SHARE * seconds, LEAST_CHUNK_S)
    chunk = await climb(prompt_scene, limits.longest_chunk, allowed_s)
    within = replace(limits, chunk_tokens=chunk)
    driver.take_stem(within.stem_tokens)
    scenes += await play([longest_prompt(within)])
    allowed_s = max(ROWS_SHARE * seconds, LEAST_ROWS_S)
    rows = await climb(partial(rows_scene, within), limits.rows, allowed_s)
    return scenes, replace(within, rows=rows)


def _progress(quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description:24}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
