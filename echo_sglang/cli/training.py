"""echo-sglang train: a step trace in, a profile and how good it is out."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from echo_sglang.cli.output import (
    JsonFlag,
    print_json,
    print_reports,
    refuses_clearly,
    report_values,
)
from echo_sglang.cli.plot import plot_predictions
from echo_sglang.cli.trace_files import identity_of, load_trace, samples_of
from echo_sglang.domain.step_record import TRACE_VERSION
from echo_sglang.errors import ProfileError
from echo_sglang.estimate.profile import Profile, Provenance
from echo_sglang.estimate.training import train as train_model

WARM_UP_ITERATIONS = 8


@refuses_clearly
def train(
    trace: Annotated[Path, typer.Argument(help="What a server was given with --echo-trace.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The profile to write.")],
    plot: Annotated[
        Path | None,
        typer.Option(help="The plot to write; default: beside the profile, as PNG."),
    ] = None,
    coverage: Annotated[
        float, typer.Option(help="Share of iterations that the upper bound is to hold for.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Chooses which iterations are held out.")] = 0,
    warm_up: Annotated[
        int, typer.Option(min=0, help="Iterations after a server's start to leave out.")
    ] = WARM_UP_ITERATIONS,
    as_json: JsonFlag = False,
) -> None:
    """Fit a model of iteration times, judge it on held-out iterations, write a profile.

    The errors are those of half of the iterations, which the fit has not seen.
    """
    found = load_trace(trace)
    for torn in found.torn:
        print(f"echo-sglang: left out: {torn}", file=sys.stderr)
    samples = samples_of(found, warm_up=warm_up)
    training = train_model(samples, seed=seed, coverage=coverage, split=(0.3, 0.2, 0.5))
    profile = Profile(
        identity=identity_of(found),
        model=training.model,
        reports=training.reports,
        provenance=Provenance(
            commit=project_version(),
            seed=seed,
            created=datetime.now(UTC).date().isoformat(),
            trace_schema=TRACE_VERSION,
            samples=len(samples),
        ),
    )
    _write(output, profile.to_json())
    plot_path = output.with_suffix(".png") if plot is None else plot
    plotted = plot_predictions(training.model, samples, plot_path, title=_caption(profile))
    written: dict[str, Any] = {
        "profile": str(output),
        "plot": str(plot_path) if plotted else None,
        "iterations": len(samples),
        "torn_lines": len(found.torn),
    }
    if as_json:
        print_json({**written, "regimes": report_values(training.reports)})
        return
    print_reports(f"Errors on held-out iterations of {trace}", training.reports)
    print(f"{len(samples)} iterations; wrote {output}" + (f" and {plot_path}" if plotted else ""))
    if not plotted:
        print("No plot: matplotlib is not installed (pip install matplotlib).")


def project_version() -> str:
    """The commit of a checkout, else the version of the installed package."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "rev-parse", "--verify", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return f"version {metadata.version('echo-sglang')}"
    return done.stdout.strip()


def _caption(profile: Profile) -> str:
    """One line under which the plot may be shown: where its figures come from."""
    identity, provenance = profile.identity, profile.provenance
    return (
        f"{identity.hardware}; {identity.model}, {identity.dtype}, tp {identity.tp_size}; "
        f"sglang {identity.sglang_version}; {provenance.samples} iterations, those fitted too; "
        f"commit {provenance.commit[:10]}; seed {provenance.seed}"
    )


def _write(path: Path, text: str) -> None:
    """The file appears whole or not at all. Raises ProfileError."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ProfileError(f"{path} cannot be written: {error}") from error
