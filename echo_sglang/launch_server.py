"""python -m echo_sglang.launch_server: SGLang's server with Echo's co-scheduler.

Takes every flag of `python -m sglang.launch_server` and Echo's own. Parses, verifies,
starts; nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys

from echo_sglang.config import CONFIG_ENV, EchoConfig
from echo_sglang.errors import EchoError

CPU_PLATFORM = "echo_cpu"
MAX_RECV_PER_POLL = "128"
"""Requests taken in per iteration: a bulk submission must not stall the online ones."""


def build_parser() -> argparse.ArgumentParser:
    """Echo's own flags; everything else goes to SGLang."""
    parser = argparse.ArgumentParser(
        prog="python -m echo_sglang.launch_server",
        description="SGLang server that keeps the SLO of online requests and gives everything "
        "they leave idle to offline ones (service_tier: flex).",
        epilog="All flags of SGLang follow. Mixed chunked prefill is on unless "
        "--echo-no-mixed-chunk is given.",
        allow_abbrev=False,
        add_help=False,
    )
    EchoConfig.add_arguments(parser)
    parser.add_argument(
        "--echo-off", action="store_true", help="serve as stock SGLang does, on the same platform"
    )
    parser.add_argument(
        "--echo-no-mixed-chunk",
        action="store_true",
        help="prefill and decode in separate iterations",
    )
    return parser


def main(argv: list[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    parser = build_parser()
    known, sglang_args = parser.parse_known_args(argv)
    if "-h" in sglang_args or "--help" in sglang_args:
        parser.print_help()
    try:
        choose_platform()
        config = None if known.echo_off else EchoConfig.from_arguments(vars(known))
        return serve(config, sglang_args, mixed=not known.echo_no_mixed_chunk)
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
    for dump in ("SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "SGLANG_PYSPY_DUMP_BEFORE_CRASH"):
        os.environ.setdefault(dump, "0")


def serve(config: EchoConfig | None, sglang_args: list[str], *, mixed: bool) -> int:
    """Verify, then hand over to SGLang. `config` None serves as stock."""
    from echo_sglang.adapter.verify import verify_install, verify_registered

    os.environ.pop(CONFIG_ENV, None)
    if config is not None:
        verify_install()
        os.environ[CONFIG_ENV] = config.to_json()
        os.environ.setdefault("SGLANG_SCHEDULER_MAX_RECV_PER_POLL", MAX_RECV_PER_POLL)
        if mixed and "--enable-mixed-chunk" not in sglang_args:
            sglang_args = [*sglang_args, "--enable-mixed-chunk"]

    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    if config is not None:
        verify_registered()
        from echo_sglang.adapter.routes import install_routes

        install_routes()
    server_args = prepare_server_args(sglang_args)
    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
