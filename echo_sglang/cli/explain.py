"""echo-sglang explain: the story of one request, or of one span of time, from a decision log."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from echo_sglang.cli.output import JsonFlag, print_facts, print_json, print_table, refuses_clearly
from echo_sglang.errors import ConfigError, TraceError
from echo_sglang.policy.decision_log import DecisionRecord, read_log
from echo_sglang.policy.explanation import (
    Span,
    StoryPart,
    between,
    intervals,
    span_of,
    story_of,
)

INTERVALS = 12

TIMES = (
    "a time of day (12:30 or 12:30:15.5) or a date with one (2026-01-31T12:30), UTC unless it says "
    "otherwise; or seconds since the log's first decision"
)


@refuses_clearly
def explain(
    log: Annotated[Path, typer.Argument(help="What the server wrote upon POST /echo/dump.")],
    rid: Annotated[str | None, typer.Option(help="The request whose story to tell.")] = None,
    since: Annotated[str | None, typer.Option("--from", help=f"Begin then: {TIMES}.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="End then; as --from.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell what was decided and why: of one request (--rid), of a span of time, or of all.

    Online rows that decode are logged as sums, so an online request's story ends with its
    prefill. Offline requests are named while they are among the candidates or run.
    """
    found = load_log(log)
    start_s = moment(found, "--from", since, -math.inf)
    end_s = moment(found, "--to", until, math.inf)
    if end_s < start_s:
        raise ConfigError(f"--to {until} is before --from {since}; exchange them")
    decisions = between(found.decisions, start_s, end_s)
    clock = _Clock(found)
    if rid is not None:
        _tell_story(rid, story_of(rid, decisions), clock, as_json=as_json)
        return
    whole, parts = span_of(decisions), intervals(decisions, INTERVALS)
    if as_json:
        print_json({**clock.span(whole), "intervals": [clock.span(part) for part in parts]})
    else:
        _tell_span(whole, parts, clock)


def load_log(path: Path) -> DecisionRecord:
    """Raises TraceError naming the file, and the line if one is at fault."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            found = read_log(file)
    except OSError as error:
        raise TraceError(
            f"{path} cannot be read: {error.strerror}; expected what POST /echo/dump writes to "
            "--echo-decision-log"
        ) from error
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error
    if not found.decisions:
        raise TraceError(
            f"{path} holds no decision: the server had nothing to do before it was dumped"
        )
    return found


def moment(found: DecisionRecord, flag: str, text: str | None, default_s: float) -> float:
    """A moment that a person wrote, on the decisions' clock. Raises ConfigError."""
    if text is None:
        return default_s
    first_s = found.decisions[0].snapshot.now_s
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        if not math.isfinite(seconds):
            raise ConfigError(f"{flag} {text}: expected a time or finite seconds")
        return first_s + seconds
    if found.unix_offset_s is None:
        raise ConfigError(
            f"{flag} {text}: this log does not say what time it was; give seconds since its "
            "first decision"
        )
    started = datetime.fromtimestamp(first_s + found.unix_offset_s, UTC)
    return _parsed(flag, text, started).timestamp() - found.unix_offset_s


def _parsed(flag: str, text: str, started: datetime) -> datetime:
    """A time of day is the first such time from an hour before the log began on."""
    time_only = re.fullmatch(r"\d{1,2}:\d{2}(:\d{2}(\.\d{1,6})?)?", text) is not None
    try:
        given = datetime.fromisoformat(f"{started:%Y-%m-%d}T{text:0>5}" if time_only else text)
    except ValueError as error:
        raise ConfigError(
            f"{flag} {text}: expected HH:MM[:SS], a date with a time such as 2026-01-31T12:30, or "
            "seconds since the log's first decision"
        ) from error
    if given.tzinfo is None:
        given = given.replace(tzinfo=UTC)
    if time_only and given < started - timedelta(hours=1):
        given += timedelta(days=1)
    return given


class _Clock:
    """Moments for people: time of day if the log knows it, else seconds since it began."""

    def __init__(self, found: DecisionRecord) -> None:
        self._first_s = found.decisions[0].snapshot.now_s
        self._offset_s = found.unix_offset_s

    def text(self, now_s: float) -> str:
        if self._offset_s is None:
            return f"+{now_s - self._first_s:.3f} s"
        moment = datetime.fromtimestamp(now_s + self._offset_s, UTC)
        return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}"

    def values(self, start_s: float, end_s: float) -> dict[str, Any]:
        """For JSON: seconds since the first decision, and the time of day if it is known."""
        values: dict[str, Any] = {
            "start_s": round(start_s - self._first_s, 6),
            "end_s": round(end_s - self._first_s, 6),
        }
        if self._offset_s is not None:
            begun = datetime.fromtimestamp(start_s + self._offset_s, UTC)
            values["start"] = begun.isoformat(timespec="milliseconds")
        return values

    def span(self, span: Span) -> dict[str, Any]:
        return {**asdict(span), **self.values(span.start_s, span.end_s)}


def _tell_story(rid: str, story: list[StoryPart], clock: _Clock, *, as_json: bool) -> None:
    if as_json:
        parts = [{**asdict(part), **clock.values(part.start_s, part.end_s)} for part in story]
        print_json({"rid": rid, "parts": parts})
        return
    lasted_s = story[-1].end_s - story[0].start_s
    released = sum(part.phase.value.endswith("released") for part in story)
    print(
        f"Request {rid}: seen from {clock.text(story[0].start_s)} for {lasted_s:.3f} s, "
        f"gave way {released} times."
    )
    for part in story:
        steps = part.last_step - part.first_step + 1
        print(f"\n{clock.text(part.start_s)}  {part.phase.value} (iteration {part.first_step}"
              + (f" to {part.last_step}, {steps} of them" if steps > 1 else "") + ")")  # fmt: skip
        print(f"    {part.first}")
        if part.last != part.first:
            print(f"    at its end: {part.last}")


def _tell_span(whole: Span, parts: list[Span], clock: _Clock) -> None:
    total = whole.decisions
    facts = {
        "from": clock.text(whole.start_s),
        "to": clock.text(whole.end_s),
        "decisions": total,
        "online prompt tokens planned": whole.online_tokens,
        "offline prompt tokens planned": whole.offline_tokens,
        "offline rows that gave way": sum(whole.released.values()),
        "half-done offline prompts that gave way": whole.chunks_released,
        "offline requests waiting": f"{whole.pooled[0]} at first, {whole.pooled[1]} at the end",
        "least time the SLOs left, ms": _ms(whole.tightest_ms),
        "predicted to take longer than that": whole.over_budget,
    }
    print_facts(facts)
    for cause, rows in whole.released.items():
        print(f"  {rows} rows gave way because {cause}.")
    print_table(
        "Why iterations were as they were",
        ("reason", "decisions", "share"),
        [[name, str(n), f"{100 * n / total:.1f} %"] for name, n in whole.reasons.items()],
    )
    print_table(
        "As time went by",
        ("from", "decisions", "mostly", "online waiting", "online rows", "offline rows",
         "online tokens", "offline tokens", "gave way", "pooled", "least ms"),
        [_interval(part, clock) for part in parts],
    )  # fmt: skip


def _interval(part: Span, clock: _Clock) -> list[str]:
    return [
        clock.text(part.start_s),
        str(part.decisions),
        next(iter(part.reasons)),
        str(part.most_online_waiting),
        str(part.most_online_rows),
        str(part.most_offline_rows),
        str(part.online_tokens),
        str(part.offline_tokens),
        str(sum(part.released.values())),
        str(part.pooled[1]),
        _ms(part.tightest_ms),
    ]


def _ms(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.1f}"
