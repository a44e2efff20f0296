"""echo-sglang profile: lead an idle server through a designed load, for its step trace."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from echo_sglang.cli.driver import SweepDriver
from echo_sglang.cli.output import JsonFlag, print_facts, print_json, refuses_clearly
from echo_sglang.cli.sweep import (
    Limits,
    Scene,
    climbing_scene,
    corner_scenes,
    longest_prompt,
    more_rows,
    random_scenes,
)


@refuses_clearly
def profile(
    url: Annotated[str, typer.Argument(help="The server, for example http://127.0.0.1:30000.")],
    seconds: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Stop after about this long. The corners are always played, but with no more "
            "rows than a thirtieth of it is enough for.",
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
    if result["rows"] < result["limits"]["rows"]:
        print(
            f"\nMore than {result['rows']} rows were too slow for {seconds:g} seconds; the server "
            f"allows {result['limits']['rows']}. Iterations with more are a guess of the profile: "
            "give it more --seconds, or the server a smaller --max-running-requests."
        )
    print("\nThe iterations are in the file that the server was given with --echo-trace.")


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

            climbed = await _climb(driver, limits, seconds, told)
            within = replace(limits, rows=climbed[-1])
            corners = corner_scenes(within)
            await driver.play(corners, more=lambda scene: told(scene) >= 0.0)
            drawn = random_scenes(within, random.Random(seed))
            played = await driver.play(drawn, more=lambda scene: told(scene) < seconds)
            progress.update(task, completed=seconds, description="done")
        last = await driver.status()
    before, after = first["step_trace"], last["step_trace"]
    return {
        "scenes": 1 + len(climbed) + len(corners) + played,
        "rows": within.rows,
        "iterations": after["rows_recorded"] - before["rows_recorded"],
        "dropped": after["rows_dropped"] - before["rows_dropped"],
        "seconds": round(time.monotonic() - begin_s, 1),
        "seed": seed,
        "limits": asdict(limits),
    }


async def _climb(
    driver: SweepDriver, limits: Limits, seconds: float, told: Callable[[Scene], float]
) -> list[int]:
    """Play more and more rows, as many as a sweep of `seconds` can afford; returns each number."""
    await driver.play([longest_prompt(limits)], more=lambda scene: told(scene) >= 0.0)
    climbed, rows = [], 1
    while not climbed or rows > climbed[-1]:
        start_s = time.monotonic()
        scene = climbing_scene(limits, rows)
        await driver.play([scene], more=lambda scene: told(scene) >= 0.0)
        climbed.append(rows)
        rows = more_rows(limits, rows, time.monotonic() - start_s, seconds)
    return climbed


def _progress(quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description:24}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
