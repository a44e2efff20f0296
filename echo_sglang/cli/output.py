"""What every command shares: errors on stderr with exit code 2, tables or JSON on stdout."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from echo_sglang.errors import EchoError
from echo_sglang.estimate.report import RegimeReport

BAD_INPUT = 2

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

P = ParamSpec("P")
R = TypeVar("R")


def refuses_clearly(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose deliberate errors end it with their message and exit code 2."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except EchoError as error:
            print(f"echo-sglang: {error}", file=sys.stderr)
            raise typer.Exit(BAD_INPUT) from error

    return guarded


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object, NaN refused."""
    print(json.dumps(values, indent=1, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table as wide as its content: first column left, the others right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    wide = Console(width=max(Console().width, 120)) if not sys.stdout.isatty() else Console()
    wide.print(table)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Names and values, one a line."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


REPORT_COLUMNS = (
    *("regime", "iterations", "p50", "p90", "p95", "p99"),
    *("bias", "under-predicted", "covered"),
)


def print_reports(title: str, reports: Sequence[RegimeReport]) -> None:
    """The errors of a step-time model, per regime, in percent."""
    rows = [
        [
            report.regime,
            str(report.samples),
            *(
                f"{100 * share:.1f} %"
                for share in (
                    report.p50_error,
                    report.p90_error,
                    report.p95_error,
                    report.p99_error,
                )
            ),
            f"{100 * report.signed_bias:+.1f} %",
            f"{100 * report.under_prediction_rate:.1f} %",
            f"{100 * report.coverage:.1f} %",
        ]
        for report in reports
    ]
    print_table(title, REPORT_COLUMNS, rows)


def report_values(reports: Sequence[RegimeReport]) -> dict[str, dict[str, Any]]:
    """Reports as JSON values, by regime."""
    return {report.regime: asdict(report) for report in reports}
