"""The plot of a trained model: what it says against what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from echo_sglang.domain.batch import Regime, StepSample
from echo_sglang.errors import ProfileError
from echo_sglang.estimate.step_time import StepTimeModel

COLOURS = {Regime.EXTEND: "tab:blue", Regime.DECODE: "tab:orange", Regime.MIXED: "tab:green"}


def plot_predictions(
    model: StepTimeModel, samples: Sequence[StepSample], path: Path, *, title: str
) -> bool:
    """Write a PNG: predicted over measured seconds, and how large the errors are.

    All iterations, fitted ones too. False if matplotlib is not installed. Raises
    ProfileError if the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    scatter, errors = figure.subplots(1, 2)
    for regime, colour in COLOURS.items():
        own = [sample for sample in samples if sample.shape.regime is regime]
        if not own:
            continue
        measured_ms = 1e3 * np.array([sample.seconds for sample in own])
        predicted_ms = 1e3 * np.array([model.predict(sample.shape) for sample in own])
        upper_ms = 1e3 * np.array([model.upper(sample.shape) for sample in own])
        label = f"{regime.value} ({len(own)})"
        scatter.scatter(measured_ms, predicted_ms, s=9, alpha=0.5, color=colour, label=label)
        error = 100 * np.sort(np.abs(predicted_ms / measured_ms - 1.0))
        share = np.arange(1, len(own) + 1) / len(own)
        covered = float(np.mean(measured_ms <= upper_ms))
        errors.plot(error, share, color=colour, label=f"{regime.value}, {covered:.1%} covered")
    ends = np.array(scatter.get_xlim())
    ends[0] = min(1e3 * sample.seconds for sample in samples)
    scatter.plot(ends, ends, color="black", linewidth=1)
    scatter.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms")
    errors.set(xlabel="error, %", ylabel="share of iterations", ylim=(0, 1), xlim=(0, 60))
    for axes in (scatter, errors):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title, fontsize=9)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path} cannot be written: {error}") from error
    return True
