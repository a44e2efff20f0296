"""Reads CSV and JSONL files of requests, with errors that name the line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from echo_sglang.errors import WorkloadError


def csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of every row. Raises WorkloadError for a missing column or no rows."""
    with _opened(path) as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise WorkloadError(
                f"{path.name} lacks column {', '.join(missing)}; it has "
                f"{', '.join(reader.fieldnames or ()) or 'none'} and needs {', '.join(columns)}"
            )
        empty = True
        for line, row in enumerate(reader, start=2):
            empty = False
            yield line, row
    if empty:
        raise WorkloadError(f"{path.name} holds no requests; is it the right file?")


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of every line that is not blank. Raises WorkloadError."""
    empty = True
    with _opened(path) as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise WorkloadError(f"{path.name} line {line} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise WorkloadError(f"{path.name} line {line}: expected a JSON object")
            empty = False
            yield line, row
    if empty:
        raise WorkloadError(f"{path.name} holds no requests; is it the right file?")


def _opened(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8")
    except OSError as error:
        raise WorkloadError(f"trace {path} cannot be read: {error.strerror}") from error


def read_timestamp_s(path: Path, line: int, text: str) -> float:
    """Seconds of "2023-11-16 18:15:46.6805900"; seven digits are more than datetime reads."""
    try:
        whole, _, fraction = text.strip().partition(".")
        stamp = datetime.strptime(whole, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        return stamp.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)
    except ValueError as error:
        raise WorkloadError(
            f"{path.name} line {line}: TIMESTAMP {text!r} is not like 2023-11-16 18:15:46.68"
        ) from error


def read_number(path: Path, line: int, row: dict[str, Any], name: str) -> float:
    """`row[name]` as a number; `line` is only for the error."""
    try:
        return float(row[name])
    except (KeyError, TypeError, ValueError) as error:
        raise WorkloadError(
            f"{path.name} line {line}: {name} is {row.get(name)!r}; expected a number"
        ) from error


def read_count(path: Path, line: int, row: dict[str, Any], name: str) -> int:
    """`row[name]` as a whole number above 0; `line` is only for the error."""
    value = read_number(path, line, row, name)
    if value < 1 or value != int(value):
        raise WorkloadError(
            f"{path.name} line {line}: {name} is {row[name]!r}; expected a whole number above 0"
        )
    return int(value)
