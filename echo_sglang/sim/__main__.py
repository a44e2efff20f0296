"""python -m echo_sglang.sim: emulated runs and the capacity planner."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from echo_sglang.errors import ConfigError, EchoError
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.plan_report import plot_trade_off, text_answer
from echo_sglang.sim.planner import Question, cached, plan
from echo_sglang.sim.processes import execute_all
from echo_sglang.sim.recipe_names import (
    OFFLINE_FORMS,
    ONLINE_FORMS,
    offline_recipe,
    online_source,
)
from echo_sglang.sim.run import execute
from echo_sglang.sim.spec import RunSpec


def build_parser() -> argparse.ArgumentParser:
    """The commands `run` and `plan`."""
    parser = argparse.ArgumentParser(prog="python -m echo_sglang.sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a described workload on virtual time")
    run.add_argument("spec", type=Path, help="JSON, as RunSpec.to_json writes it")
    run.add_argument("--output", type=Path, default=None, help="JSON file (default: stdout)")
    add_plan_arguments(
        commands.add_parser("plan", help="what a fleet can harvest beside its online traffic")
    )
    return parser


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `plan`."""
    parser.add_argument("--online", required=True, help=ONLINE_FORMS)
    parser.add_argument("--offline", default="documents:900x10", help=OFFLINE_FORMS)
    parser.add_argument("--hardware", default="A100-80G:Llama-3.1-8B", help="HARDWARE[xN]:MODEL")
    parser.add_argument("--slo", default="500,50", help="TTFT,TPOT in ms (%(default)s)")
    parser.add_argument("--starts-s", default="0", help="window starts in the trace, seconds")
    parser.add_argument("--window-s", type=float, default=300.0, help="(%(default)s)")
    parser.add_argument("--attained", type=float, default=0.99, help="(%(default)s)")
    parser.add_argument("--replicas", type=int, default=None, help="default: the fewest that hold")
    parser.add_argument("--margins", default="0.5,0.65,0.8,0.95", help="for the trade-off")
    parser.add_argument("--batch-lines", type=int, default=None, help="does such a batch finish")
    parser.add_argument("--batch-window-h", type=float, default=24.0, help="(%(default)s)")
    parser.add_argument("--kv-tokens", type=int, default=None, help="default: from the memory")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (%(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results/plan"), help="(%(default)s)")


def question_from(arguments: argparse.Namespace) -> Question:
    """Raises ConfigError or WorkloadError naming what cannot be planned."""
    ttft_ms, tpot_ms = _numbers("--slo", arguments.slo, 2)
    return Question(
        device=arguments.hardware,
        online=online_source(arguments.online),
        offline=offline_recipe(arguments.offline),
        slo=Slo(ttft_s=ttft_ms / 1e3, tpot_s=tpot_ms / 1e3),
        starts_s=_numbers("--starts-s", arguments.starts_s),
        window_s=arguments.window_s,
        attained=arguments.attained,
        replicas=arguments.replicas,
        margins=_numbers("--margins", arguments.margins),
        batch_lines=arguments.batch_lines,
        batch_window_s=3600.0 * arguments.batch_window_h,
        kv_tokens=arguments.kv_tokens,
        seed=arguments.seed,
    )


def run_plan(arguments: argparse.Namespace) -> None:
    """Print the answer; leave plan.json, plan.txt and trade_off.png in the results folder."""
    question = question_from(arguments)
    folder: Path = arguments.results
    keeping = cached(folder / "runs", partial(execute_all, jobs=arguments.jobs))
    answer = plan(question, keeping, progress=lambda text: print(text, file=sys.stderr))
    text = text_answer(question, answer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.txt").write_text(text + "\n", encoding="utf-8")
    (folder / "plan.json").write_text(json.dumps(answer.to_json(), indent=1) + "\n", "utf-8")
    plot_trade_off(question, answer, folder / "trade_off.png")
    print(text)


def run_spec(arguments: argparse.Namespace) -> None:
    """One run in this process."""
    spec = RunSpec.from_json(json.loads(arguments.spec.read_text("utf-8")))
    text = json.dumps(execute(spec), indent=1)
    if arguments.output is None:
        print(text)
    else:
        arguments.output.write_text(text + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code is 2 for an error that a user can do something about."""
    arguments = build_parser().parse_args(argv)
    try:
        (run_plan if arguments.command == "plan" else run_spec)(arguments)
    except (EchoError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _numbers(flag: str, text: str, count: int | None = None) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{flag} {text!r}: expected numbers separated by commas") from error
    if count is not None and len(values) != count:
        raise ConfigError(f"{flag} {text!r}: expected {count} numbers separated by a comma")
    return values


if __name__ == "__main__":
    sys.exit(main())
