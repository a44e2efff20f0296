"""echo-sglang profile: lead an idle server through a designed load, for its step trace."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from echo_sglang.cli.driver import SweepDriver
from echo_sglang.cli.output import JsonFlag, print_facts, print_json, refuses_clearly
from echo_sglang.cli.sweep import Scene, corner_scenes, random_scenes


@refuses_clearly
def profile(
    url: Annotated[str, typer.Argument(help="The server, for example http://127.0.0.1:30000.")],
    seconds: Annotated[
        float,
        typer.Option(min=0.0, help="Stop after about this long; the corners are always played."),
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
    print("\nThe iterations are in the file that the server was given with --echo-trace.")


async def _sweep(url: str, seconds: float, seed: int, *, quiet: bool) -> dict[str, Any]:
    begin_s = time.monotonic()
    # Tokens must be new to the server's cache; only the sizes of the scenes follow the seed.
    async with SweepDriver(url.rstrip("/"), random.Random()) as driver:
        limits = await driver.open()
        corners = corner_scenes(limits)
        first = await driver.status()
        with _progress(quiet) as progress:
            task = progress.add_task("starting", total=seconds)
            started = 0

            def more(scene: Scene) -> bool:
                nonlocal started
                elapsed_s = time.monotonic() - begin_s
                progress.update(task, completed=min(elapsed_s, seconds), description=scene.name)
                started += 1
                return started <= len(corners) or elapsed_s < seconds

            scenes = itertools.chain(corners, random_scenes(limits, random.Random(seed)))
            played = await driver.play(scenes, more=more)
            progress.update(task, completed=seconds, description="done")
        last = await driver.status()
    before, after = first["step_trace"], last["step_trace"]
    return {
        "scenes": played,
        "corners": len(corners),
        "iterations": after["rows_recorded"] - before["rows_recorded"],
        "dropped": after["rows_dropped"] - before["rows_dropped"],
        "seconds": round(time.monotonic() - begin_s, 1),
        "seed": seed,
        "limits": asdict(limits),
    }


def _progress(quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description:24}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
