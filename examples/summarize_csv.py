"""Describe every row of a CSV file in a sentence, as offline work; the result is a CSV again.

python examples/summarize_csv.py examples/cities.csv -o described.csv
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import common
import pandas as pd
import sglang as sgl

from echo_sglang.errors import ConfigError
from echo_sglang.frontend import run_programs, shown_progress


@sgl.function
def describe(s: Any, columns: str, row: str, max_tokens: int) -> None:
    """One row; what all rows have in common comes first, so its KV is shared."""
    s += sgl.system("You describe the rows of a table.")
    s += sgl.user(f"The columns: {columns}\nDescribe this row in one sentence.\n{row}")
    s += sgl.assistant(sgl.gen("summary", max_tokens=max_tokens, temperature=0, stop="\n"))


def row_text(row: pd.Series) -> str:
    """A row as `name: value` lines; absent values are left out."""
    return "\n".join(f"{name}: {value}" for name, value in row.dropna().items())


def main() -> None:
    """Write the table with two more columns, `summary` and `error`."""
    parser = common.parser("Describe every row of a CSV file in a sentence.")
    parser.add_argument("csv", type=Path, help="a CSV file with a header")
    parser.add_argument("-o", "--output", type=Path, help="where to write; absent: the terminal")
    parser.add_argument("--rows", type=int, help="only so many, from the top")
    arguments = parser.parse_args()
    try:
        table = pd.read_csv(arguments.csv, nrows=arguments.rows)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{arguments.csv} cannot be read as CSV: {error}") from error
    columns = ", ".join(map(str, table.columns))
    jobs = [
        {"columns": columns, "row": row_text(row), "max_tokens": arguments.max_tokens}
        for _, row in table.iterrows()
    ]
    backend = common.connect(arguments)
    with shown_progress(len(jobs), "rows") as finished:
        outcomes = run_programs(describe, jobs, backend, finished=finished)
    good = [outcome.error is None for outcome in outcomes]
    table["summary"] = [
        outcome["summary"].strip() if fine else None
        for outcome, fine in zip(outcomes, good, strict=True)
    ]
    table["error"] = [None if outcome.error is None else str(outcome.error) for outcome in outcomes]
    table.to_csv(arguments.output or sys.stdout, index=False)
    print(f"{sum(good)} of {len(good)} rows described", file=sys.stderr)


if __name__ == "__main__":
    common.run(main)
