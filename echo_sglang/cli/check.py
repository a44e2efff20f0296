"""echo-sglang check: the step trace of a running server against SGLang's own metrics."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from echo_sglang.cli.output import JsonFlag, print_facts, print_json, print_table, refuses_clearly
from echo_sglang.cli.trace_files import load_trace
from echo_sglang.estimate.trace_check import TraceCheck, check_trace

DISAGREES = 1
SETTLE_S = 1.5
"""How long after the last message until the server has written the same iterations."""


@refuses_clearly
def check(
    trace: Annotated[Path, typer.Argument(help="What the server was given with --echo-trace.")],
    ipc_name: Annotated[
        str,
        typer.Option(help="What it was given with --forward-pass-metrics-ipc-name, ipc:///..."),
    ],
    seconds: Annotated[float, typer.Option(min=1.0, help="How long to listen.")] = 30.0,
    rank: Annotated[int, typer.Option(min=0, help="Data parallel rank.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Listen while the server works, then compare rows, tokens, KV and device time.

    Ends with exit code 1 if anything differs or nothing could be compared.
    """
    from echo_sglang.adapter.forward_pass import ForwardPassRecorder

    with ForwardPassRecorder(ipc_name, rank=rank) as recorder:
        let_pass(seconds)
    let_pass(SETTLE_S)
    found = check_trace(load_trace(trace).records, recorder.passes)
    if as_json:
        print_json({**asdict(found), "agrees": found.agrees})
    else:
        _print(found)
    if not found.agrees:
        raise typer.Exit(DISAGREES)


def let_pass(seconds: float) -> None:
    """Wait while the server works."""
    time.sleep(seconds)


def _print(found: TraceCheck) -> None:
    ratio = found.device_time_ratio
    print_facts(
        {
            "agrees": "yes" if found.agrees else "NO",
            "iterations compared": found.compared,
            "only in the step trace": found.only_trace,
            "only in forward pass metrics": found.only_forward_pass,
            "device time, ours over SGLang's": "-" if ratio is None else f"{ratio:.3f}",
        }
    )
    if not found.compared:
        print("Nothing was received that the trace tells of: is the name right, was there work?")
    if found.counts:
        print_table(
            "Values that differ",
            ("value", "iterations"),
            [[name, str(count)] for name, count in found.counts.items()],
        )
        print_table(
            "The first of them",
            ("iteration", "value", "step trace", "forward pass"),
            [
                [str(one.iteration), one.name, f"{one.trace:.6g}", f"{one.forward_pass:.6g}"]
                for one in found.shown
            ],
        )
