"""Run an experiment, such as `python eval/run.py foundation`. Results go to results/<name>/."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from echo_sglang.errors import EchoError, WorkloadError
from eval import foundation, kv_demand, step_time
from eval.contenders import CONFIGS
from eval.harness.report import text_table
from eval.harness.server import REPOSITORY, default_model_path, exit_on_sigterm
from eval.harness.workload import Order

QUICK_WINDOW_S = 45.0


def build_parser() -> argparse.ArgumentParser:
    """The command line of all experiments."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="experiment", required=True)
    command = commands.add_parser("foundation", help="online beside offline: stock against Echo")
    command.add_argument(
        "--configs", default=",".join(CONFIGS), help="comma-separated (%(default)s)"
    )
    command.add_argument("--seeds", default="1,2,3", help="comma-separated (%(default)s)")
    command.add_argument(
        "--orders", default="shuffled,sorted", help="of the offline questions (%(default)s)"
    )
    command.add_argument("--window-s", type=float, default=90.0, help="seconds (%(default)s)")
    command.add_argument("--search-window-s", type=float, default=45.0, help="(%(default)s)")
    command.add_argument(
        "--quick", action="store_true", help="one seed, shuffled, 45 s: a look, not a result"
    )
    command.add_argument("--fresh", action="store_true", help="measure finished cells again")
    command.add_argument("--name", default=None, help="result folder below results/")
    command.add_argument("--model-path", type=Path, default=default_model_path())
    command.add_argument("--stock-python", default=sys.executable, help="of the stock servers")
    command.add_argument("--echo-python", default=sys.executable, help="of the Echo server")
    command.add_argument("--platform", default="echo_cpu", help="SGLANG_PLATFORM of all servers")
    command.add_argument("--echo-flags", default="", help="further flags of the Echo server")
    kv_demand.add_command(commands)
    _add_step_time(commands)
    return parser


def _add_step_time(commands: Any) -> None:
    command = commands.add_parser("step-time", help="step-time estimation on measured GPU tables")
    command.add_argument("--seeds", default="1,2,3", help="comma-separated (%(default)s)")
    command.add_argument("--samples", type=int, default=6000, help="random batches (%(default)s)")
    command.add_argument(
        "--kernels", type=Path, action="append", help="LLMServingSim folder of a GPU; repeatable"
    )
    command.add_argument(
        "--operators", type=Path, action="append", help="aiconfigurator folder; repeatable"
    )
    command.add_argument("--name", default="step-time", help="result folder below results/")


def run_step_time(arguments: argparse.Namespace) -> int:
    """Estimate step times of the tables given, by default of those beside the project."""
    given = arguments.kernels or arguments.operators
    plan = step_time.Plan(
        results=REPOSITORY / "results" / arguments.name,
        kernels=tuple(arguments.kernels or (() if given else step_time.default_kernels())),
        operators=tuple(arguments.operators or (() if given else step_time.default_operators())),
        seeds=tuple(int(seed) for seed in arguments.seeds.split(",")),
        samples=arguments.samples,
    )
    if not plan.kernels and not plan.operators:
        raise WorkloadError("no GPU tables beside the project; give --kernels or --operators")
    print(f"\n{step_time.text(step_time.run(plan))}\n")
    print(f"written to {plan.results.relative_to(REPOSITORY)}/")
    return 0


def plan_from(arguments: argparse.Namespace) -> foundation.Plan:
    """The plan that the command line asks for. Raises WorkloadError for an unknown name."""
    quick = arguments.quick
    name = arguments.name or ("foundation-quick" if quick else "foundation")
    seeds = tuple(int(seed) for seed in arguments.seeds.split(","))
    orders = tuple(Order(order) for order in arguments.orders.split(","))
    return foundation.Plan(
        results=REPOSITORY / "results" / name,
        model_path=arguments.model_path.expanduser(),
        configs=tuple(arguments.configs.split(",")),
        orders=(Order.SHUFFLED,) if quick else orders,
        seeds=seeds[:1] if quick else seeds,
        window_s=QUICK_WINDOW_S if quick else arguments.window_s,
        search_window_s=arguments.search_window_s,
        stock_python=arguments.stock_python,
        echo_python=arguments.echo_python,
        extra_echo_flags=tuple(arguments.echo_flags.split()),
        platform=arguments.platform,
        fresh=arguments.fresh,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; the exit code is 1 for an error that a user can do something about."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.experiment == "kv-demand":
            return kv_demand.main(arguments)
        if arguments.experiment == "step-time":
            return run_step_time(arguments)
        plan = plan_from(arguments)
        table = foundation.run(plan)
    except (EchoError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\n{text_table(table)}\n")
    for key, value in foundation.verdict(table).items():
        print(f"{key}: {value:.3g}" if isinstance(value, float) else f"{key}: {value}")
    print(f"written to {plan.results.relative_to(REPOSITORY)}/")
    return 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
