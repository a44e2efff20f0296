"""Turn summaries into the table, the CSV file and the plots of a result folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from eval.harness.records import RunRecord, Slo

TABLE_COLUMNS = {
    "attainment": "attained",
    "ttft_p50_s": "TTFT p50 s",
    "ttft_p99_s": "TTFT p99 s",
    "tpot_p50_s": "TPOT p50 s",
    "tpot_p99_s": "TPOT p99 s",
    "offline_per_s": "offline/s",
    "offline_tokens_per_s": "offline tok/s",
    "kv_hit_rate": "KV hit",
    "pool_dry": "pool dry",
}


def write_json(path: Path, data: object) -> None:
    """Write `data` as JSON; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(data, indent=1, default=str) + "\n", encoding="utf-8")
    partial.replace(path)


def medians(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per (config, order): the median over seeds of every number, and `num_seeds`.

    cells: one row per (config, order, seed), as written to cells.csv. `pool_dry` is true if
    any seed's pool ran dry. Configurations keep the order in which they first appear.
    """
    numbers = list(cells.columns.difference(["config", "order", "seed", "pool_dry"]))
    groups = cells.assign(**cells[numbers].astype(float)).groupby(["config", "order"], sort=False)
    table = groups[numbers].median()
    table["pool_dry"] = groups["pool_dry"].any()
    table["num_seeds"] = groups["seed"].nunique()
    return table.reset_index()


def text_table(table: pd.DataFrame) -> str:
    """`table` of `medians` for a terminal: the columns of TABLE_COLUMNS, two or three digits."""
    shown = table[["config", "order", *TABLE_COLUMNS, "num_seeds"]].rename(columns=TABLE_COLUMNS)
    return str(shown.to_string(index=False, na_rep="-", float_format=lambda v: f"{v:.3g}"))


def plot_comparison(table: pd.DataFrame, path: Path, *, slo: Slo, caption: str) -> None:
    """Scatter of offline throughput against attainment, and online latency per configuration.

    table: as returned by `medians`. caption: one line on where the figures come from.
    """
    figure, (trade, ttft, tpot) = plt.subplots(1, 3, figsize=(16, 5.2), layout="constrained")
    _scatter_trade_off(trade, table)
    labels = [f"{row.config}\n{row.order}" for row in table.itertuples()]
    _latency_bars(ttft, table, labels, "ttft", slo.ttft_s, "TTFT")
    _latency_bars(tpot, table, labels, "tpot", slo.tpot_s, "TPOT")
    figure.suptitle(caption, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_timeline(run: RunRecord, path: Path, *, slo: Slo, caption: str) -> None:
    """One run over time: every online TTFT and TPOT with its bound, and offline work done."""
    figure, (latency, done) = plt.subplots(
        2, 1, figsize=(10, 6.5), sharex=True, layout="constrained"
    )
    finished = [r for r in run.online if r.finished]
    sent_s = [r.due_s for r in finished]
    latency.scatter(sent_s, [r.ttft_s for r in finished], s=22, color="tab:blue", label="TTFT")
    with_tpot = [(r.due_s, r.tpot_s) for r in finished if r.tpot_s is not None]
    latency.scatter(*zip(*with_tpot, strict=True) if with_tpot else ((), ()), s=22,
                    color="tab:orange", label="TPOT")  # fmt: skip
    latency.axhline(slo.ttft_s, color="tab:blue", linestyle="--", linewidth=1)
    latency.axhline(slo.tpot_s, color="tab:orange", linestyle="--", linewidth=1)
    latency.set(ylabel="seconds (bounds dashed)", yscale="log")
    latency.legend(loc="upper right")
    done_s = [r.done_s for r in run.offline if r.error is None]
    done.step(done_s, range(1, len(done_s) + 1), where="post", color="tab:green")
    done.axvline(run.window_s, color="grey", linewidth=1, linestyle=":")
    done.set(xlabel="seconds", ylabel="offline requests done", xlim=(0, None), ylim=(0, None))
    figure.suptitle(caption, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def caption_of(provenance: Mapping[str, Any], *, seeds: Sequence[int], window_s: float) -> str:
    """One line under which figures may be quoted: hardware, model, pin, commit, seeds, window."""
    environments = provenance.get("environments") or {}
    versions: Mapping[str, str] = next(iter(environments.values()), {})
    commit = str(provenance["commit"])[:10] + ("+changes" if provenance["dirty"] else "")
    return (
        f"{provenance['hardware']} {provenance['cpu']}, {provenance['cores']} cores; "
        f"{provenance['model']}; sglang {versions.get('sglang', '?')}, "
        f"torch {versions.get('torch', '?')}; commit {commit}; "
        f"seeds {', '.join(map(str, seeds))}; window {window_s:.0f} s"
    )


def _scatter_trade_off(axes: Axes, table: pd.DataFrame) -> None:
    markers = {"shuffled": "o", "sorted": "s"}
    for row in table.itertuples():
        offline_per_s = 0.0 if pd.isna(row.offline_per_s) else row.offline_per_s
        point = (offline_per_s, row.attainment)
        axes.scatter(*point, s=60, marker=markers.get(str(row.order), "D"))
        axes.annotate(f"{row.config} ({row.order})", point, fontsize=8,
                      xytext=(5, 5), textcoords="offset points")  # fmt: skip
    axes.set(xlabel="offline requests per second", ylabel="online SLO attainment")
    most = table["offline_per_s"].fillna(0.0).max()
    axes.set(xlim=(-0.05, 1.4 * most + 0.1), ylim=(-0.03, 1.08))
    axes.grid(alpha=0.3)


def _latency_bars(
    axes: Axes, table: pd.DataFrame, labels: Sequence[str], metric: str, bound_s: float, name: str
) -> None:
    places = range(len(table))
    axes.bar([p - 0.2 for p in places], table[f"{metric}_p50_s"], width=0.4, label="p50")
    axes.bar([p + 0.2 for p in places], table[f"{metric}_p99_s"], width=0.4, label="p99")
    axes.axhline(bound_s, color="black", linestyle="--", linewidth=1, label="SLO")
    axes.set_xticks(list(places), labels, rotation=60, ha="right", fontsize=8)
    axes.set(ylabel=f"online {name}, seconds", yscale="log", xlim=(-0.6, len(table) - 0.4))
    axes.legend(fontsize=8)
