"""echo-sglang plan: what a fleet can harvest beside its online traffic, by emulation."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from echo_sglang.cli.output import JsonFlag, print_json, refuses_clearly
from echo_sglang.cli.training import project_version
from echo_sglang.errors import ConfigError
from echo_sglang.sim.kept_runs import keeping
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.plan_answer import Answer
from echo_sglang.sim.plan_question import HOUR_S, Question, roofline_of, sample_starts
from echo_sglang.sim.plan_report import plot_trade_off, text_answer
from echo_sglang.sim.planner import plan as answer_to
from echo_sglang.sim.processes import execute_all
from echo_sglang.sim.recipe_names import (
    OFFLINE_FORMS,
    ONLINE_FORMS,
    offline_recipe,
    online_source,
)

INTERRUPTED = 130


@refuses_clearly
def plan(
    online: Annotated[str, typer.Option(help=f"Online traffic: {ONLINE_FORMS}.")],
    offline: Annotated[str, typer.Option(help=f"Offline work: {OFFLINE_FORMS}.")],
    hardware: Annotated[
        str, typer.Option(help="HARDWARE:MODEL, HARDWARExN:MODEL for tensor parallel.")
    ] = "A100-80G:Llama-3.1-8B",
    profile: Annotated[
        Path | None,
        typer.Option(help="Times from this step-time profile; it must be of --hardware."),
    ] = None,
    slo: Annotated[str, typer.Option(help="TTFT,TPOT in milliseconds.")] = "500,50",
    attained: Annotated[
        float, typer.Option(help="Share of online requests that must meet the SLO.")
    ] = 0.99,
    online_share: Annotated[float, typer.Option(help="Share of the online traffic served.")] = 1.0,
    window_s: Annotated[float, typer.Option(help="Length of an emulated window, seconds.")] = 300.0,
    per_hour: Annotated[
        int, typer.Option(min=1, help="Windows emulated in every hour of the traffic.")
    ] = 2,
    starts_s: Annotated[
        str | None,
        typer.Option(help="Where windows start, seconds, comma-separated; instead of --per-hour."),
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Servers; default: the fewest that hold.")
    ] = None,
    margins: Annotated[
        str, typer.Option(help="Shares of the SLO to plan with, for the trade-off.")
    ] = "0.5,0.65,0.8,0.95",
    batch_lines: Annotated[
        int | None, typer.Option(help="Does a batch of so many lines make its window?")
    ] = None,
    batch_window_h: Annotated[float, typer.Option(help="That window, hours.")] = 24.0,
    kv_tokens: Annotated[
        int | None, typer.Option(help="KV tokens of a server; default: what its memory holds.")
    ] = None,
    context_tokens: Annotated[int, typer.Option(help="Longest request served.")] = 131_072,
    seed: Annotated[int, typer.Option(help="Chooses all that is drawn.")] = 1,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes at a time; default: one a core.")
    ] = None,
    results: Annotated[
        Path, typer.Option(help="Folder for plan.json, plan.txt, trade_off.png and the runs.")
    ] = Path("results/plan"),
    as_json: JsonFlag = False,
) -> None:
    """Does the online SLO hold with offline work beside, what does it harvest, at what cost?

    Runs SGLang's real scheduler with Echo on virtual time. Finished runs are kept in --results:
    an interrupted plan goes on with the same command.
    """
    source = online_source(online)
    length_s = source.length_s()
    ttft_ms, tpot_ms = _numbers("--slo", slo, count=2)
    question = Question(
        device=hardware if profile is None else f"{hardware}@{profile}",
        online=source,
        offline=offline_recipe(offline),
        slo=Slo(ttft_s=ttft_ms / 1e3, tpot_s=tpot_ms / 1e3),
        starts_s=sample_starts(length_s, window_s, per_hour)
        if starts_s is None
        else _numbers("--starts-s", starts_s),
        window_s=window_s,
        length_s=length_s,
        online_share=online_share,
        attained=attained,
        replicas=replicas,
        margins=_numbers("--margins", margins),
        batch_lines=batch_lines,
        batch_window_s=batch_window_h * HOUR_S,
        kv_tokens=kv_tokens,
        context_tokens=context_tokens,
        seed=seed,
    )
    _make_folder(results)
    jobs = jobs or len(os.sched_getaffinity(0))
    execute = keeping(results / "runs", partial(execute_all, jobs=jobs), version=project_version())
    try:
        with _Shown() as progress:
            answer = answer_to(question, execute, progress, at_once=jobs)
    except KeyboardInterrupt:
        print(
            f"echo-sglang: interrupted; what is finished is in {results / 'runs'}, the same "
            "command goes on from there",
            file=sys.stderr,
        )
        raise typer.Exit(INTERRUPTED) from None
    _write(question, answer, results, as_json=as_json)


def _write(question: Question, answer: Answer, folder: Path, *, as_json: bool) -> None:
    values = {
        "question": question_values(question),
        "version": project_version(),
        **answer.to_json(),
    }
    text = text_answer(question, answer)
    try:
        (folder / "plan.txt").write_text(text + "\n", encoding="utf-8")
        (folder / "plan.json").write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"--results {folder} cannot be written: {error}") from error
    plotted = plot_trade_off(question, answer, folder / "trade_off.png")
    if as_json:
        print_json(values)
        return
    print(text)
    files = "plan.json, plan.txt" + (", trade_off.png" if plotted else "")
    print(f"\nWrote {files} to {folder}")


def question_values(question: Question) -> dict[str, Any]:
    """The question as JSON values, with where the figures of its hardware come from."""
    values = asdict(question)
    values["offline"] = {"kind": type(question.offline).__name__, **values["offline"]}
    values["pool_tokens"] = question.pool_tokens
    device = roofline_of(question.device)
    if device is not None:
        values["sources"] = [device.hardware.source, device.model.source]
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--results {folder} cannot be made: {error}") from error


def _numbers(flag: str, text: str, count: int | None = None) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{flag} {text!r}: expected numbers separated by commas") from error
    if count is not None and len(values) != count:
        raise ConfigError(f"{flag} {text!r}: expected {count} numbers separated by a comma")
    return values


class _Shown:
    """A progress bar on stderr; on something other than a terminal, one line a phase."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._plain = not console.is_terminal
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=self._plain,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> _Shown:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, what: str, runs: int) -> None:
        """A new phase."""
        self._bar.reset(self._task, total=runs, description=what)
        if self._plain:
            print(f"{what}: {runs} run(s)", file=sys.stderr, flush=True)

    def advance(self) -> None:
        """One run is there, made now or kept from before."""
        self._bar.advance(self._task)
