"""The experiments' command lines: what each takes, and how it is run and printed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from echo_sglang.errors import WorkloadError
from echo_sglang.sim.documents import Order as OfflineOrder
from echo_sglang.sim.metrics import Slo
from eval import (
    batch_service,
    bench_sim,
    emulated,
    flood,
    foundation,
    impact,
    kv_cache,
    kv_demand,
    live_step_times,
    step_time,
    validation,
    validation_cpu,
)
from eval.contenders import CONFIGS
from eval.emulated_scenarios import OFFLINE, ONLINE, scenario_named
from eval.harness.report import text_table
from eval.harness.server import REPOSITORY, default_model_path
from eval.harness.workload import Order

QUICK_WINDOW_S = 45.0
SCENARIOS = ",".join(f"{online}+{offline}" for online in ONLINE for offline in OFFLINE)


def add_commands(commands: Any) -> None:
    """Add every experiment; `execute` of the parsed arguments runs the one chosen."""
    _add_foundation(commands)
    _add_emulated(commands)
    _add_step_time(commands)
    kv_demand.add_command(commands)
    impact.add_command(commands)
    kv_cache.add_command(commands)
    live_step_times.add_command(commands)
    validation.add_command(commands)
    bench_sim.add_command(commands)
    validation_cpu.add_command(commands)
    batch_service.add_command(commands)
    flood.add_command(commands)


def _add_foundation(commands: Any) -> None:
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
    command.set_defaults(execute=lambda given: _run_foundation(plan_from(given)))


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


def _add_emulated(commands: Any) -> None:
    command = commands.add_parser("emulated", help="the same question at a GPU's scale, emulated")
    command.add_argument("--device", default="A100-80G:Llama-3.1-8B-flat", help="(%(default)s)")
    command.add_argument(
        "--scenarios", default=SCENARIOS, help="ONLINE[+OFFLINE],... (%(default)s)"
    )
    command.add_argument(
        "--contenders", default=",".join(emulated.CONTENDERS), help="(%(default)s)"
    )
    command.add_argument("--orders", default="shuffled,sorted", help="(%(default)s)")
    command.add_argument("--seeds", default="1", help="comma-separated (%(default)s)")
    command.add_argument("--window-s", type=float, default=600.0, help="(%(default)s)")
    command.add_argument("--search-window-s", type=float, default=60.0, help="(%(default)s)")
    command.add_argument("--documents", type=int, default=900, help="10 questions each")
    command.add_argument("--kv-tokens", type=int, default=400_000, help="(%(default)s)")
    command.add_argument("--slo", default=None, help="TTFT,TPOT in ms; default: each scenario's")
    command.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    command.add_argument("--jobs", type=int, default=1, help="processes at a time (%(default)s)")
    command.add_argument(
        "--echo-server-args", default="{}", help="JSON: further ServerArgs of Echo's server"
    )
    command.add_argument("--fresh", action="store_true", help="measure finished cells again")
    command.add_argument("--name", default="emulated", help="result folder below results/")
    command.set_defaults(execute=lambda given: _run_emulated(emulated_plan_from(given)))


def emulated_plan_from(arguments: argparse.Namespace) -> emulated.Plan:
    """The plan that the command line asks for. Raises WorkloadError for an unknown name."""
    scenarios = [
        scenario_named(
            name,
            data=arguments.data.expanduser(),
            window_s=arguments.window_s,
            documents=arguments.documents,
        )
        for name in arguments.scenarios.split(",")
    ]
    return emulated.Plan(
        results=REPOSITORY / "results" / arguments.name,
        device=arguments.device,
        scenarios=tuple(scenarios),
        contenders=tuple(arguments.contenders.split(",")),
        orders=tuple(OfflineOrder(order) for order in arguments.orders.split(",")),
        seeds=tuple(int(seed) for seed in arguments.seeds.split(",")),
        search_window_s=arguments.search_window_s,
        kv_tokens=arguments.kv_tokens,
        slo=None if arguments.slo is None else _slo_from(arguments.slo),
        echo_server_args=tuple(json.loads(arguments.echo_server_args).items()),
        jobs=arguments.jobs,
        fresh=arguments.fresh,
    )


def _slo_from(text: str) -> Slo:
    try:
        ttft_ms, tpot_ms = map(float, text.split(","))
    except ValueError as error:
        raise WorkloadError(f"--slo {text!r}: say TTFT,TPOT in milliseconds") from error
    return Slo(ttft_s=ttft_ms / 1e3, tpot_s=tpot_ms / 1e3)


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
    command.set_defaults(execute=_run_step_time)


def _run_step_time(arguments: argparse.Namespace) -> None:
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


def _run_emulated(plan: emulated.Plan) -> None:
    medians = emulated.run(plan)
    emulated.plot(plan, medians)
    print(f"\n{emulated.text_table(medians)}\n")
    for name, found in emulated.verdict(medians).items():
        print(name, *(f"{k}: {'-' if v is None else f'{v:.2f}'}" for k, v in found.items()))
    print(f"written to {plan.results.relative_to(REPOSITORY)}/")


def _run_foundation(plan: foundation.Plan) -> None:
    table = foundation.run(plan)
    print(f"\n{text_table(table)}\n")
    for key, value in foundation.verdict(table).items():
        print(f"{key}: {value:.3g}" if isinstance(value, float) else f"{key}: {value}")
    print(f"written to {plan.results.relative_to(REPOSITORY)}/")
