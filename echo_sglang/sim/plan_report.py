"""A plan as a table for people, and its trade-off as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from echo_sglang.errors import ConfigError
from echo_sglang.sim.plan_answer import Answer, HourAnswer, WindowAnswer, pareto
from echo_sglang.sim.plan_question import HOUR_S, Question

WINDOW_COLUMNS = (
    ("from s", 7), ("SLO used", 8), ("online", 6), ("attained %", 14), ("TTFT p50 ms", 13),
    ("TTFT p99 ms", 13), ("TPOT p99 ms", 14), ("offline/s", 9), ("tokens/s", 9), ("hit", 5),
    ("of limit", 8),
)  # fmt: skip
HOUR_COLUMNS = (
    ("hour", 4), ("windows", 7), ("online/s", 8), ("attained %", 10), ("offline/s", 9),
    ("tokens/s", 9), ("offline tokens", 14),
)  # fmt: skip


def text_answer(question: Question, answer: Answer) -> str:
    """The answer in words, then hours, windows (alone -> beside offline work) and trade-off."""
    lines = [*_verdict(question, answer), "", "By hour of the online traffic, all replicas:"]
    lines += [_header(HOUR_COLUMNS), *map(_hour_row, answer.hours)]
    lines += ["", "Windows, online alone -> beside offline work, each replica's requests:"]
    lines += [_header(WINDOW_COLUMNS), *map(_window_row, answer.windows)]
    lines += ["", "Trade-off in the busiest window:"]
    lines += [_header(WINDOW_COLUMNS), *map(_window_row, answer.trade_off)]
    if any(w.pool_dry for w in (*answer.windows, *answer.trade_off)):
        lines.append("* all offline work was done before the window's end; its rate is until then")
    return "\n".join(lines)


def _verdict(question: Question, answer: Answer) -> list[str]:
    holds = "holds" if answer.holds else "does NOT hold"
    lines = [
        f"Emulated {question.device}, {question.pool_tokens} KV tokens each: TTFT "
        f"{1e3 * question.slo.ttft_s:g} ms and TPOT {1e3 * question.slo.tpot_s:g} ms for "
        f"{100 * question.attained:g} % of online requests {holds} with offline work beside, "
        f"on {answer.replicas} replica(s).",
    ]
    if answer.replicas_alone is not None:
        lines.append(f"Online traffic alone needs {answer.replicas_alone} replica(s).")
    lines.append(
        f"Harvest: {answer.harvested_tokens_per_hour:,.0f} offline tokens per hour (mean of "
        f"{len(answer.windows)} window(s) of {question.window_s:g} s), at a cost of "
        f"{_cost(answer.windows)}."
    )
    if answer.batch_s is not None:
        fits = "fits" if answer.batch_fits else "does NOT fit"
        lines.append(
            f"A batch of {question.batch_lines} lines takes {_hours(answer.batch_s)} and {fits} "
            f"its window of {_hours(question.batch_window_s)}."
        )
    return lines


def _cost(windows: Sequence[WindowAnswer]) -> str:
    """What online users pay, as the largest rise over the windows."""

    def rise(read: str) -> float:
        pairs = [(getattr(w.alone, read), getattr(w.beside, read)) for w in windows]
        rises = [b - a for a, b in pairs if a is not None and b is not None]
        return max(rises, default=0.0)

    return (
        f"at most {1e3 * rise('ttft_p50_s'):+.0f} ms TTFT p50, "
        f"{1e3 * rise('ttft_p99_s'):+.0f} ms TTFT p99, {1e3 * rise('tpot_p99_s'):+.1f} ms TPOT p99 "
        f"and {100 * rise('missed'):+.1f} points of missed SLOs"
    )


def plot_trade_off(question: Question, answer: Answer, path: Path) -> bool:
    """Offline tokens/s against online TTFT and TPOT p99, one point per share of the SLO used.

    The line joins those that no other beats. False if matplotlib is not installed. Raises
    ConfigError if the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, name, read, slo_s in (
        (axes[0], "TTFT", "ttft_p99_s", question.slo.ttft_s),
        (axes[1], "TPOT", "tpot_p99_s", question.slo.tpot_s),
    ):
        _plot_latency(axis, answer.trade_off, read)
        axis.axvline(1e3 * slo_s, color="black", linestyle="--", linewidth=1, label="SLO")
        axis.set(xlabel=f"online {name} p99, ms")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    highest = max(point.harvested_tokens_per_s for point in answer.trade_off)
    axes[0].set(ylabel="offline tokens/s, all replicas", ylim=(0, 1.15 * highest or 1.0))
    figure.suptitle(
        f"emulated {question.device} x {answer.replicas}, from second "
        f"{answer.trade_off[0].start_s:g}, seed {question.seed}; labels: share of the SLO used"
    )
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    return True


def _plot_latency(axis: Any, points: Sequence[WindowAnswer], read: str) -> None:
    def at(point: WindowAnswer) -> tuple[float, float]:
        return 1e3 * (getattr(point.beside, read) or 0.0), point.harvested_tokens_per_s

    best = sorted(map(at, pareto(points)))
    axis.plot(*zip(*best, strict=True), "-", color="tab:blue", linewidth=1, label="best")
    axis.plot(*zip(*map(at, points), strict=True), "o", color="tab:blue")
    for point in points:
        axis.annotate(f"{point.margin:g}", at(point), xytext=(4, 4), textcoords="offset points")
    alone_s = getattr(points[0].alone, read)
    if alone_s is not None:
        axis.axvline(1e3 * alone_s, color="grey", linestyle=":", linewidth=1, label="online alone")


def _header(columns: Sequence[tuple[str, int]]) -> str:
    return "  ".join(name.rjust(width) for name, width in columns)


def _line(cells: Sequence[str], columns: Sequence[tuple[str, int]]) -> str:
    return "  ".join(cell.rjust(width) for cell, (_, width) in zip(cells, columns, strict=True))


def _hour_row(hour: HourAnswer) -> str:
    cells = (
        str(hour.hour),
        str(hour.windows),
        f"{hour.online_per_s:.2f}",
        _number(hour.attained, 100, 1),
        f"{hour.harvested_per_s:.2f}",
        f"{hour.harvested_tokens_per_s:.0f}",
        f"{hour.harvested_tokens:,.0f}",
    )
    return _line(cells, HOUR_COLUMNS)


def _window_row(window: WindowAnswer) -> str:
    alone, beside = window.alone, window.beside
    cells = (
        f"{window.start_s:g}",
        f"{window.margin:g}",
        str(window.online_requests),
        _both(alone.attained, beside.attained, 100, 1),
        _both(alone.ttft_p50_s, beside.ttft_p50_s, 1e3, 0),
        _both(alone.ttft_p99_s, beside.ttft_p99_s, 1e3, 0),
        _both(alone.tpot_p99_s, beside.tpot_p99_s, 1e3, 1),
        f"{window.harvested_per_s:.2f}" + ("*" if window.pool_dry else ""),
        f"{window.harvested_tokens_per_s:.0f}",
        _number(window.hit_rate, 1, 2),
        _number(window.share_of_limit, 1, 2),
    )
    return _line(cells, WINDOW_COLUMNS)


def _both(alone: float | None, beside: float | None, scale: float, digits: int) -> str:
    return f"{_number(alone, scale, digits)} -> {_number(beside, scale, digits)}"


def _number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"


def _hours(seconds: float) -> str:
    return "for ever" if math.isinf(seconds) else f"{seconds / HOUR_S:.2f} h"
