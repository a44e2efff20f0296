"""Reads step traces: text in, records out, a clear error for every line that is not one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from echo_sglang.domain.step_record import (
    COLUMNS,
    TRACE_SCHEMA,
    TRACE_VERSION,
    ExtendSums,
    StepMode,
    StepRecord,
    TraceHeader,
)
from echo_sglang.errors import TraceError

SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class StepTrace:
    """What the files of one trace hold, oldest iteration first.

    header: of the newest file. torn: a last line that its writer could not finish, in words.
    """

    header: TraceHeader
    records: tuple[StepRecord, ...]
    torn: tuple[str, ...] = ()


def read_step_trace(files: Sequence[tuple[str, Iterable[str]]]) -> StepTrace:
    """Read (name, lines) of each file of a trace, oldest first; lines keep their newline.

    The last line a server wrote may be torn, since servers are killed: it is left out and
    named in `torn`. Raises TraceError, naming file and line, for everything else that is
    not a trace, for files of unlike servers, and if there is no iteration at all.
    """
    parts = [_read_file(name, lines) for name, lines in files]
    if not parts:
        raise TraceError("no step trace was given; a server writes one with --echo-trace PATH")
    _require_alike(parts)
    torn = []
    for part, newer in zip(parts, [*parts[1:], None], strict=True):
        if part.torn is None:
            continue
        if newer is not None and newer.header.started_unix_s == part.header.started_unix_s:
            raise TraceError(f"{part.torn}, though the same server went on in {newer.name}")
        torn.append(part.torn)
    records = tuple(record for part in parts for record in part.records)
    if not records:
        raise TraceError(
            f"{parts[-1].name} holds no iteration: let the server compute something first"
        )
    return StepTrace(parts[-1].header, records, tuple(torn))


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    header: TraceHeader
    records: list[StepRecord]
    torn: str | None


def _read_file(name: str, lines: Iterable[str]) -> _File:
    header: TraceHeader | None = None
    records: list[StepRecord] = []
    torn: str | None = None
    last_iteration = -1
    for number, line in enumerate(lines, start=1):
        where = f"{name} line {number}"
        if torn is not None:
            raise TraceError(torn)
        try:
            values = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            torn = f"{where}: {_shown(line)} is not JSON ({error})"
            if line.endswith("\n"):
                raise TraceError(torn) from error
            continue
        if header is None:
            header = _header(where, values)
            continue
        record = _record(where, values)
        if record.iteration <= last_iteration:
            _fail(where, f"iteration {record.iteration} after {last_iteration}", "rising numbers")
        last_iteration = record.iteration
        records.append(record)
    if header is None:
        what = "is empty" if torn is None else f"holds no whole line ({torn})"
        raise TraceError(f"{name} {what}: expected a header as --echo-trace writes it")
    return _File(name, header, records, torn)


def _require_alike(parts: Sequence[_File]) -> None:
    newest = parts[-1]
    for part in parts[:-1]:
        unlike = sorted(
            key
            for key in {*part.header.identity, *newest.header.identity}
            if part.header.identity.get(key) != newest.header.identity.get(key)
        )
        if unlike:
            key = unlike[0]
            raise TraceError(
                f"{part.name} was written by another kind of server than {newest.name}: {key} is "
                f"{part.header.identity.get(key)!r} and {newest.header.identity.get(key)!r}; "
                f"move one of them away"
            )


def _header(where: str, values: Any) -> TraceHeader:
    if not isinstance(values, dict) or values.get("schema") != TRACE_SCHEMA:
        _fail(where, _shown(json.dumps(values)), f"a header of schema {TRACE_SCHEMA!r}")
    if values.get("version") != TRACE_VERSION:
        _fail(where, f"version {values.get('version')!r}", f"version {TRACE_VERSION}")
    if values.get("columns") != list(COLUMNS):
        _fail(where, f"columns {values.get('columns')!r}", f"{list(COLUMNS)!r}")
    identity, limits = values.get("identity"), values.get("limits")
    if not isinstance(identity, Mapping) or not isinstance(limits, Mapping):
        _fail(where, "no identity or no limits", "both, as objects")
    return TraceHeader(
        identity=identity,
        limits={str(key): _count(where, str(key), value) for key, value in limits.items()},
        started_unix_s=_seconds(where, "started_unix_s", values.get("started_unix_s")),
    )


def _record(where: str, values: Any) -> StepRecord:
    if not isinstance(values, list) or len(values) != len(COLUMNS):
        _fail(where, _shown(json.dumps(values)), f"an array of {len(COLUMNS)} values")
    row = dict(zip(COLUMNS, values, strict=True))
    if row["mode"] not in {mode.value for mode in StepMode}:
        _fail(where, f"mode {row['mode']!r}", ", ".join(mode.value for mode in StepMode))
    extends, sums = _extends(where, row["extends"], row["extend_sums"])
    seconds = {name: _seconds(where, name, row[name]) for name in _SECONDS}
    counts = {name: _count(where, name, row[name]) for name in _COUNTS}
    padded = row["padded_rows"]
    values_by_name: dict[str, Any] = {**seconds, **counts}
    record = StepRecord(
        mode=StepMode(row["mode"]),
        extends=extends,
        sums=sums,
        padded_rows=None if padded is None else _count(where, "padded_rows", padded),
        reason=str(row["reason"]),
        **values_by_name,
    )
    _require_consistent(where, record)
    return record


_SECONDS = ("ended_s", "step_s", "host_s", "device_s")
_COUNTS = (
    "iteration",
    "decode_rows",
    "decode_kv_tokens",
    "online_rows",
    "online_tokens",
    "evicted_tokens",
    "released_rows",
)


def _extends(
    where: str, pairs: Any, sums: Any
) -> tuple[tuple[tuple[int, int], ...] | None, ExtendSums]:
    if pairs is None:
        if not isinstance(sums, list) or len(sums) != 5:
            _fail(where, f"extend_sums {_shown(json.dumps(sums))}", "five sums where no pairs are")
        return None, ExtendSums(*(_count(where, "extend_sums", value) for value in sums))
    if not isinstance(pairs, list) or any(not isinstance(p, list) or len(p) != 2 for p in pairs):
        _fail(where, f"extends {_shown(json.dumps(pairs))}", "pairs of chunk and prefix tokens")
    extends = tuple((_count(where, "extends", c), _count(where, "extends", p)) for c, p in pairs)
    return extends, ExtendSums.of(extends)


def _require_consistent(where: str, record: StepRecord) -> None:
    has = (record.sums.tokens > 0, record.decode_rows > 0)
    allowed = {
        StepMode.EXTEND: (True, False),
        StepMode.DECODE: (False, True),
        StepMode.MIXED: (True, True),
        StepMode.IDLE: (False, False),
    }[record.mode]
    if has != allowed:
        given = f"{record.sums.tokens} prompt tokens and {record.decode_rows} decode rows"
        _fail(where, f"mode {record.mode.value} with {given}", "what the mode says")
    if record.offline_rows < 0 or record.offline_tokens < 0:
        _fail(where, "more online work than work", "online_rows and online_tokens as a share")


def _count(where: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        _fail(where, f"{name} {value!r}", "a whole number, 0 or more")
    return int(value)


def _seconds(where: str, name: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        _fail(where, f"{name} {value!r}", "finite seconds, 0 or more")
    return float(value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of a trace")


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...")


def _fail(where: str, given: str, allowed: str) -> NoReturn:
    raise TraceError(f"{where}: {given}; expected {allowed}")
