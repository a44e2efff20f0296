"""How `echo-sglang batch` shows files and batches, and waits for one."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from echo_sglang.cli.batch_client import BatchClient, UnreachableError
from echo_sglang.cli.output import print_facts, print_json
from echo_sglang.service.forecast import BYTES_A_TOKEN, Demand, Speed, warning_of
from echo_sglang.service.validation import Validation

ENDED_BADLY = 1
VALIDATION_WAIT_S = 10.0
FORECASTS = {
    "measured_pace": "at the pace of offline work in the last minute",
    "idle_server": "at least, if nobody is online",
    "own_pace": "at its present pace",
}
FINAL = ("completed", "failed", "expired", "cancelled")


def print_validation(
    path: Path, checked: Validation, as_json: bool, forecast: Mapping[str, Any] | None = None
) -> None:
    """The faults of a file, on stderr as FILE:LINE, or what it holds. forecast: see
    `forecast_of`, None if no server was asked."""
    demand = checked.demand
    prompt_tokens = round(demand.prompt_bytes / BYTES_A_TOKEN)
    faults = [
        {"code": each.code, "line": each.line, "message": each.message, "param": each.param}
        for each in checked.errors
    ]
    if as_json:
        print_json(
            {
                "valid": not faults,
                "lines": checked.num_lines,
                "endpoint": checked.endpoint,
                "model": checked.model,
                "prompt_tokens_about": prompt_tokens,
                "output_tokens_at_most": demand.output_tokens,
                "forecast": forecast,
                "errors": faults,
            }
        )
        return
    for fault in faults:
        place = f"{path}:{fault['line']}" if fault["line"] else str(path)
        print(f"{place}: {fault['code']}: {fault['message']}", file=sys.stderr)
    if not faults:
        print(f"{path}: {checked.num_lines} lines for {checked.endpoint}, model {checked.model}")
        print(
            f"about {prompt_tokens:,} prompt tokens, shared beginnings once, and at most "
            f"{demand.output_tokens:,} output tokens"
        )
        if forecast is not None:
            print_forecast(forecast)


def forecast_of(demand: Demand, speed: Speed, window_s: float) -> Mapping[str, Any]:
    """Whether a batch of this demand makes its window, on a server of this speed that has no
    other batch to do; all None if the server does not know."""
    needs_s = speed.seconds_for(demand)
    return {
        "eta_s": None if needs_s is None else math.ceil(needs_s),
        "eta_from": None if needs_s is None else speed.basis,
        "within_window": None if needs_s is None else needs_s <= window_s,
        "warning": warning_of(needs_s, window_s, speed.basis),
    }


def print_forecast(forecast: Mapping[str, Any]) -> None:
    """On stderr, so that stdout stays what it was."""
    if forecast["warning"]:
        print(f"warning: {forecast['warning']}", file=sys.stderr)
    elif forecast["eta_s"] is None:
        print("the server does not know its speed yet: no forecast", file=sys.stderr)
    else:
        how = FORECASTS[forecast["eta_from"]]
        print(f"expected to take about {forecast['eta_s']:,} s {how}", file=sys.stderr)


def watched(client: BatchClient, batch_id: str, poll_s: float, *, quiet: bool) -> Mapping[str, Any]:
    """Show progress on stderr until the batch has ended. A server that restarts meanwhile is
    waited for."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    batch = client.get(batch_id)
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(state_of(batch), total=None, left="")
        while True:
            counts = batch["request_counts"]
            progress.update(
                task,
                description=state_of(batch),
                total=counts["total"] or None,
                completed=counts["completed"] + counts["failed"],
                left=left_of(batch),
            )
            if batch["status"] in FINAL:
                return batch
            time.sleep(poll_s)
            try:
                batch = client.get(batch_id)
            except UnreachableError:
                progress.update(task, left="server away, waiting")


def validated(client: BatchClient, batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """The batch once the server has read its file, which is when it can be forecast; as it is
    after VALIDATION_WAIT_S."""
    give_up_s = time.monotonic() + VALIDATION_WAIT_S
    while batch["status"] == "validating" and time.monotonic() < give_up_s:
        time.sleep(0.1)
        batch = client.get(batch["id"])
    return batch


def state_of(batch: Mapping[str, Any]) -> str:
    """Its status, or that it is paused."""
    return "paused" if batch.get("echo", {}).get("paused") else str(batch["status"])


def left_of(batch: Mapping[str, Any]) -> str:
    """How long until the last line, empty if not known."""
    eta_s = batch.get("echo", {}).get("eta_s")
    return "" if eta_s is None else f"about {eta_s} s left"


def print_batch(batch: Mapping[str, Any], as_json: bool) -> None:
    """One batch, and on stderr why it was refused."""
    if as_json:
        print_json(batch)
        return
    counts = batch["request_counts"]
    facts = {
        "batch": batch["id"],
        "status": state_of(batch),
        "lines": f"{counts['completed']} completed, {counts['failed']} failed, of "
        f"{counts['total']}",
        "left": left_of(batch) or "-",
        "output file": batch["output_file_id"] or "-",
        "error file": batch["error_file_id"] or "-",
    }
    print_facts(facts)
    if warning := batch.get("echo", {}).get("warning"):
        print(f"warning: {warning}", file=sys.stderr)
    for error in (batch["errors"] or {}).get("data", []):
        place = f"line {error['line']}: " if error["line"] else ""
        print(f"{place}{error['code']}: {error['message']}", file=sys.stderr)


def exit_with(batch: Mapping[str, Any]) -> None:
    """Exit code 1 for an ended batch that did not end well."""
    if batch and (batch["status"] != "completed" or batch["request_counts"]["failed"]):
        raise typer.Exit(ENDED_BADLY)
