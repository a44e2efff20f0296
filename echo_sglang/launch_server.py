"""python -m echo_sglang.launch_server: SGLang's server with Echo's co-scheduler.

Takes every flag of `python -m sglang.launch_server` and Echo's own. Parses, verifies,
starts; nothing else.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import SpawnProcess

from echo_sglang.adapter.collector import collect_from_now_on
from echo_sglang.config import CONFIG_ENV, EchoConfig, EvictionPolicy
from echo_sglang.errors import ConfigError, EchoError
from echo_sglang.sim.environment import EMULATE_ENV

if __name__ == "__main__" or (__name__ == "__mp_main__" and hasattr(SpawnProcess, "_after_fork")):
    # A start is imports for the most part; see `collect_from_now_on`.
    gc.disable()
    # Called in a spawned process when it has imported what it runs; by itself it does nothing.
    SpawnProcess._after_fork = staticmethod(collect_from_now_on)  # type: ignore[attr-defined]

CPU_PLATFORM = "echo_cpu"
CPU_ENVIRONMENT = {
    "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
    "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
}
MAX_RECV_PER_POLL = "1024"
"""Requests received per iteration; offline ones wait in a lane then (adapter/paced_intake.py)."""


def build_parser() -> argparse.ArgumentParser:
    """Echo's own flags; everything else goes to SGLang."""
    parser = argparse.ArgumentParser(
        prog="python -m echo_sglang.launch_server",
        description="SGLang server that keeps the SLO of online requests and gives everything "
        "they leave idle to offline ones (service_tier: flex).",
        epilog="All flags of SGLang follow.",
        allow_abbrev=False,
        add_help=False,
    )
    EchoConfig.add_arguments(parser)
    parser.add_argument(
        "--echo-off", action="store_true", help="serve as stock SGLang does, on the same platform"
    )
    parser.add_argument(
        "--echo-cpu-overlap",
        action="store_true",
        help="keep SGLang's overlap schedule on the CPU platform, where nothing overlaps and "
        "every token is delivered one iteration late",
    )
    parser.add_argument(
        "--echo-no-mixed-chunk",
        action="store_true",
        help="prefill and decode in separate iterations, as SGLang does without "
        "--enable-mixed-chunk",
    )
    parser.add_argument(
        "--echo-emulate",
        metavar="HARDWARE:MODEL",
        help="answer at the speed of this accelerator, such as A100-80G:Llama-3.1-8B, without "
        "weights and with meaningless text; --model-path gives only the tokenizer",
    )
    return parser


def main(argv: list[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    parser = build_parser()
    known, sglang_args = parser.parse_known_args(argv)
    if "-h" in sglang_args or "--help" in sglang_args:
        parser.print_help()
    try:
        if known.echo_off and known.data_dir:
            raise ConfigError(
                "--echo-data-dir does not go with --echo-off: batches run as Echo's offline work; "
                "leave one of them out"
            )
        choose_platform()
        emulated = emulate(known.echo_emulate)
        config = None if known.echo_off else EchoConfig.from_arguments(vars(known))
        if config is not None:
            from echo_sglang.adapter.start_files import check_files

            check_files(config)
        wanted = [] if known.echo_off else wanted_flags(known, os.environ)
        return serve(config, with_flags(sglang_args, [*wanted, *emulated]))
    except EchoError as error:
        print(f"echo_sglang: {error}", file=sys.stderr)
        return 2


def choose_platform() -> None:
    """With no accelerator and no platform named, take the CPU platform of this package."""
    import torch

    accelerated = torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available())
    if accelerated or os.environ.get("SGLANG_PLATFORM"):
        return
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        return
    os.environ["SGLANG_PLATFORM"] = CPU_PLATFORM
    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def emulate(device_name: str | None) -> list[str]:
    """SGLang's flags for an emulated server; none if no device is named. The name reaches
    the scheduler through the environment."""
    os.environ.pop(EMULATE_ENV, None)
    if device_name is None:
        return []
    from echo_sglang.sim.live_flags import server_flags

    flags = server_flags(device_name)
    os.environ[EMULATE_ENV] = device_name
    return flags


def wanted_flags(known: argparse.Namespace, environment: Mapping[str, str]) -> list[str]:
    """SGLang flags that Echo turns on by itself, unless told not to; --flag or --flag=value."""
    wanted = [] if known.echo_no_mixed_chunk else ["--enable-mixed-chunk"]
    if known.eviction != EvictionPolicy.LRU:
        wanted.append("--radix-cache-backend=echo")
    on_cpu = environment.get("SGLANG_PLATFORM") == CPU_PLATFORM
    if on_cpu and not known.echo_cpu_overlap and not known.echo_emulate:
        wanted.append("--disable-overlap-schedule")
    return wanted


def with_flags(sglang_args: list[str], wanted: list[str]) -> list[str]:
    """`sglang_args` and those of `wanted` that are not in it."""
    given = {arg.partition("=")[0] for arg in sglang_args}
    return [*sglang_args, *(flag for flag in wanted if flag.partition("=")[0] not in given)]


def serve(config: EchoConfig | None, sglang_args: list[str]) -> int:
    """Verify, then hand over to SGLang. `config` None serves as stock."""
    from echo_sglang.adapter.supervised import check_supervised, join_supervisor
    from echo_sglang.adapter.verify import verify_hooked, verify_install, verify_registered

    os.environ.pop(CONFIG_ENV, None)
    supervised = join_supervisor()
    if config is not None:
        verify_install()
        os.environ[CONFIG_ENV] = config.to_json()
        os.environ.setdefault("SGLANG_SCHEDULER_MAX_RECV_PER_POLL", MAX_RECV_PER_POLL)

    service = None
    if config is not None:
        from echo_sglang.adapter.batches import check_batch_args, install_batches, open_batches

        blame = supervised is None or supervised.blame_requests
        service = open_batches(config, blame_crashes=blame)

    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    server_args = prepare_server_args(sglang_args)
    if supervised is not None:
        check_supervised(supervised, server_args)
    if config is not None:
        from echo_sglang.adapter import admin, drain, media, redaction
        from echo_sglang.adapter.compat import check_eviction, check_server_args
        from echo_sglang.adapter.routes import install_routes

        check_server_args(server_args, os.environ)
        check_eviction(server_args, EvictionPolicy(config.eviction), os.environ)
        check_batch_args(server_args, config)
        verify_registered()
        hooks = (*admin.HOOKS, *drain.HOOKS, *media.HOOKS, *redaction.HOOKS)
        verify_hooked(hook.target for hook in hooks)
        install_routes(config)
        admin.close_admin_routes(server_args)
        install_batches(service, config)
    import sglang.srt.entrypoints.http_server  # noqa: F401  (the last large import)

    collect_from_now_on()
    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
