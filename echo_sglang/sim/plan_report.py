"""A plan as a table for people, and its trade-off as a plot."""

from __future__ import annotations

import math
from pathlib import Path

from echo_sglang.sim.planner import Answer, Question, WindowAnswer

COLUMNS = (
    ("start", 7), ("margin", 6), ("online", 6), ("attained", 15), ("TTFT p99 ms", 15),
    ("TPOT p99 ms", 15), ("offline/s", 9), ("tokens/s", 9), ("hit", 5), ("of limit", 8),
)  # fmt: skip


def text_answer(question: Question, answer: Answer) -> str:
    """The answer in words, then one line per window: alone -> beside offline work."""
    verdict = "holds" if answer.holds else "does NOT hold"
    lines = [
        f"{question.device}, {question.pool_tokens} KV tokens each: TTFT "
        f"{1e3 * question.slo.ttft_s:g} ms and TPOT {1e3 * question.slo.tpot_s:g} ms for "
        f"{100 * question.attained:g} % of online requests {verdict} with offline work beside, "
        f"on {answer.replicas} replica(s).",
        f"Harvest: {3600 * _mean_tokens(answer.windows):,.0f} offline tokens per hour "
        f"(mean of {len(answer.windows)} window(s) of {question.window_s:g} s).",
    ]
    if answer.batch_s is not None:
        fits = "fits" if answer.batch_fits else "does NOT fit"
        lines.append(
            f"A batch of {question.batch_lines} lines takes {_hours(answer.batch_s)} and {fits} "
            f"its window of {_hours(question.batch_window_s)}."
        )
    lines += ["", _header(), *map(_row, answer.windows), "", "Trade-off in the busiest window:"]
    return "\n".join([*lines, _header(), *map(_row, answer.trade_off)])


def plot_trade_off(question: Question, answer: Answer, path: Path) -> None:
    """Offline tokens/s against online TTFT and TPOT p99, one point per share of the SLO used."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    points = answer.trade_off
    rates = [point.harvested_tokens_per_s for point in points]
    for axis, name, latencies_s, alone_s, slo_s in (
        (axes[0], "TTFT", [p.ttft_p99_s for p in points], points[0].ttft_p99_alone_s,
         question.slo.ttft_s),
        (axes[1], "TPOT", [p.tpot_p99_s for p in points], points[0].tpot_p99_alone_s,
         question.slo.tpot_s),
    ):  # fmt: skip
        axis.plot([1e3 * s for s in latencies_s], rates, "o-")
        for point, latency_s in zip(points, latencies_s, strict=True):
            at = (1e3 * latency_s, point.harvested_tokens_per_s)
            axis.annotate(f"{point.margin:g}", at, xytext=(4, 4), textcoords="offset points")
        axis.axvline(1e3 * slo_s, color="black", linestyle="--", linewidth=1, label="SLO")
        axis.axvline(1e3 * alone_s, color="grey", linestyle=":", linewidth=1, label="online alone")
        axis.set(xlabel=f"online {name} p99, ms")
        axis.legend(fontsize=8)
    axes[0].set(ylabel="offline tokens/s, all replicas", ylim=(0, None))
    figure.suptitle(
        f"emulated {question.device} x {answer.replicas}; labels: share of the SLO used"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _mean_tokens(windows: tuple[WindowAnswer, ...]) -> float:
    return sum(w.harvested_tokens_per_s for w in windows) / len(windows)


def _header() -> str:
    return "  ".join(name.rjust(width) for name, width in COLUMNS)


def _row(window: WindowAnswer) -> str:
    cells = (
        f"{window.start_s:g}",
        f"{window.margin:g}",
        str(window.online_requests),
        f"{100 * window.attained_alone:.1f} -> {100 * window.attained:.1f}",
        f"{1e3 * window.ttft_p99_alone_s:.0f} -> {1e3 * window.ttft_p99_s:.0f}",
        f"{1e3 * window.tpot_p99_alone_s:.1f} -> {1e3 * window.tpot_p99_s:.1f}",
        f"{window.harvested_per_s:.2f}" + ("*" if window.pool_dry else ""),
        f"{window.harvested_tokens_per_s:.0f}",
        "-" if window.hit_rate is None else f"{window.hit_rate:.2f}",
        "-" if window.share_of_limit is None else f"{window.share_of_limit:.2f}",
    )
    return "  ".join(cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True))


def _hours(seconds: float) -> str:
    return "for ever" if math.isinf(seconds) else f"{seconds / 3600:.2f} h"
