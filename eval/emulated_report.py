"""What the emulated experiment leaves behind: medians, verdict, table and plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd

from echo_sglang.sim.metrics import Slo
from eval.emulated_contenders import ECHO, ONLINE_ALONE, PAPER_NAMES, STOCK_FASTEST, STOCK_TUNED

ATTAINED_ENOUGH = 0.99
LOST_AT_MOST = 0.01
"""Where online traffic alone does not attain enough: how much less counts as the SLO kept."""

TABLE_COLUMNS = {
    "attainment": "attained",
    "ttft_p50_s": "TTFT p50 s",
    "ttft_p99_s": "TTFT p99 s",
    "tpot_p50_s": "TPOT p50 s",
    "tpot_p99_s": "TPOT p99 s",
    "offline_per_s": "offline/s",
    "at_slo_per_s": "at SLO",
    "offline_tokens_per_s": "tokens/s",
    "share_of_limit": "of limit",
    "offline_hit_rate": "hit",
    "optimal_hit_rate": "best hit",
    "recomputed_tokens": "recomputed",
    "preemptions_per_online": "preempt/online",
    "decide_p50_ms": "decide ms",
}

MEANING = {
    "attainment": "share of online requests whose TTFT and mean TPOT met the scenario's SLO",
    "at_slo_per_s": f"offline/s if attained >= {ATTAINED_ENOUGH} or at most {LOST_AT_MOST} below "
    "online alone; else nothing: throughput at equal online SLO",
    "share_of_limit": "what finished offline requests cost at least (each shared prefix computed "
    "once, weights read for free, no overhead), over the device time that online work leaves; no "
    "scheduler reaches 1",
    "offline_hit_rate": "prompt tokens of finished offline requests that came from the cache",
    "optimal_hit_rate": "the same if every prefix they share were computed once",
    "recomputed_tokens": "tokens computed again for requests that gave way and came back",
    "preemptions_per_online": "times that offline requests gave way, per online request",
    "decide_p50_ms": "real time of SGLang's and Echo's decision per iteration, on the machine "
    "that ran the emulation; everything else is virtual",
}


def median_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row per (scenario, contender, order): medians over seeds, with `at_slo_per_s`."""
    keys = ["scenario", "contender", "order"]
    numbers = [c for c in table.columns if c not in (*keys, "seed") and _is_number(table[c])]
    groups = table.assign(**table[numbers].astype(float)).groupby(keys, sort=False)
    medians = groups[numbers].median()
    medians["num_seeds"] = groups["seed"].nunique()
    return with_equal_slo(medians.reset_index())


def _is_number(column: pd.Series[Any]) -> bool:
    """True if every value is a number or missing; a figure that no run has is one too."""
    return bool(column.map(lambda value: value is None or isinstance(value, (int, float))).all())


def with_equal_slo(medians: pd.DataFrame) -> pd.DataFrame:
    """Add `at_slo_per_s`; see MEANING."""
    alone = medians[medians["contender"] == ONLINE_ALONE].set_index("scenario")["attainment"]
    least = medians["scenario"].map(alone).astype(float) - LOST_AT_MOST
    enough = least.fillna(ATTAINED_ENOUGH).clip(upper=ATTAINED_ENOUGH)
    kept = medians["attainment"] >= enough - 1e-9
    return medians.assign(at_slo_per_s=medians["offline_per_s"].where(kept))


def verdict(medians: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """By scenario and order: Echo's offline throughput and its ratio to tuned stock's, each only
    where the SLO was kept; its ratio to the fastest stock, whose SLO does not count."""
    found: dict[str, dict[str, float | None]] = {}
    for (scenario, order), rows in medians.groupby(["scenario", "order"], sort=False):
        rates = rows.set_index("contender")["at_slo_per_s"]
        fastest = rows.set_index("contender")["offline_per_s"]
        if ECHO not in rates:
            continue
        echo = rates[ECHO]
        found[f"{scenario} {order}"] = {
            "echo_per_s": _known(echo),
            "over_tuned_stock": _known(echo / rates[STOCK_TUNED]) if STOCK_TUNED in rates else None,
            "over_fastest_stock": _known(echo / fastest[STOCK_FASTEST])
            if STOCK_FASTEST in fastest
            else None,
        }
    return found


def _known(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def text_table(medians: pd.DataFrame) -> str:
    """For a terminal."""
    columns = [column for column in TABLE_COLUMNS if column in medians]
    shown = medians[["scenario", "contender", "order", *columns, "num_seeds"]]
    shown = shown.assign(contender=shown["contender"].map(labelled))
    renamed = shown.rename(columns=TABLE_COLUMNS)
    return str(renamed.to_string(index=False, na_rep="-", float_format=lambda v: f"{v:.3g}"))


def labelled(contender: str) -> str:
    """With the paper's name, where it has one."""
    paper = PAPER_NAMES.get(contender)
    return contender if paper in (None, contender.title()) else f"{contender} ({paper})"


def plot_scenarios(
    medians: pd.DataFrame, folder: Path, *, slos: Mapping[str, Slo], caption: str
) -> None:
    """One picture a scenario: offline throughput, online TTFT and TPOT of every contender."""
    for scenario, rows in medians.groupby("scenario", sort=False):
        figure, axes = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
        names = [
            labelled(r.contender) + ("" if r.order == "-" else f"\n{r.order}")
            for r in rows.itertuples()
        ]
        _plot_throughput(axes[0], rows, names)
        slo = slos[str(scenario)]
        _plot_latency(axes[1], rows, names, "ttft", slo.ttft_s)
        _plot_latency(axes[2], rows, names, "tpot", slo.tpot_s)
        figure.suptitle(f"{scenario}; {caption}", fontsize=9)
        figure.savefig(folder / f"{scenario}.png", dpi=120)
        plt.close(figure)


def _plot_throughput(axis: Any, rows: pd.DataFrame, names: list[str]) -> None:
    places = range(len(rows))
    rates = rows["offline_per_s"].fillna(0.0)
    kept = rows["at_slo_per_s"].notna()
    colours = ["tab:green" if ok else "lightgrey" for ok in kept]
    bars = axis.bar(places, rates, color=colours, edgecolor="black", linewidth=0.5)
    axis.bar_label(bars, [f"{rate:.2f}" if rate else "" for rate in rates], fontsize=8)
    limit = rows["limit_per_s"].max()
    if pd.notna(limit):
        axis.axhline(limit, color="black", linestyle=":", linewidth=1, label="physical limit")
        axis.legend(fontsize=8)
    axis.set_xticks(list(places), names, rotation=60, ha="right", fontsize=8)
    axis.set(ylabel="offline requests/s (grey: online SLO missed)")


def _plot_latency(axis: Any, rows: pd.DataFrame, names: list[str], what: str, slo_s: float) -> None:
    places = range(len(rows))
    axis.bar([p - 0.2 for p in places], rows[f"{what}_p50_s"], width=0.4, label="p50")
    axis.bar([p + 0.2 for p in places], rows[f"{what}_p99_s"], width=0.4, label="p99")
    axis.axhline(slo_s, color="black", linestyle="--", linewidth=1, label="SLO")
    axis.set_xticks(list(places), names, rotation=60, ha="right", fontsize=8)
    axis.set(ylabel=f"online {what.upper()}, s", yscale="log")
    axis.legend(fontsize=8)
