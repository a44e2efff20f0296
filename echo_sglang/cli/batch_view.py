"""How `echo-sglang batch` shows files and batches, and waits for one."""

from __future__ import annotations

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
from echo_sglang.service.validation import Validation

ENDED_BADLY = 1
FINAL = ("completed", "failed", "expired", "cancelled")


def print_validation(path: Path, checked: Validation, as_json: bool) -> None:
    """The faults of a file, on stderr as FILE:LINE, or what it holds."""
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
                "errors": faults,
            }
        )
        return
    for fault in faults:
        place = f"{path}:{fault['line']}" if fault["line"] else str(path)
        print(f"{place}: {fault['code']}: {fault['message']}", file=sys.stderr)
    if not faults:
        print(f"{path}: {checked.num_lines} lines for {checked.endpoint}, model {checked.model}")


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
    for error in (batch["errors"] or {}).get("data", []):
        place = f"line {error['line']}: " if error["line"] else ""
        print(f"{place}{error['code']}: {error['message']}", file=sys.stderr)


def exit_with(batch: Mapping[str, Any]) -> None:
    """Exit code 1 for an ended batch that did not end well."""
    if batch and (batch["status"] != "completed" or batch["request_counts"]["failed"]):
        raise typer.Exit(ENDED_BADLY)
