"""echo-sglang serve: a server that is restarted when it crashes or hangs."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated

import typer

from echo_sglang.cli.output import refuses_clearly
from echo_sglang.supervisor.flags import listen, parse_serve_flags
from echo_sglang.supervisor.restarts import Limits
from echo_sglang.supervisor.supervise import Supervisor

LAUNCHER = "echo_sglang.launch_server"
PATIENCE = Limits()


@refuses_clearly
def serve(
    context: typer.Context,
    drain_s: Annotated[
        float,
        typer.Option(
            "--echo-drain-s", min=0, help="Seconds that online requests get after SIGTERM."
        ),
    ] = PATIENCE.drain_s,
    hang_s: Annotated[
        float,
        typer.Option(
            "--echo-hang-s",
            min=1,
            help="A ready engine whose scheduler is silent for so many seconds is restarted. "
            "Raise it if weights are updated while serving or an iteration takes long.",
        ),
    ] = PATIENCE.hang_s,
    start_s: Annotated[
        float,
        typer.Option("--echo-start-s", min=1, help="Seconds an engine may take to be ready."),
    ] = PATIENCE.start_s,
    most_failures: Annotated[
        int,
        typer.Option(
            "--echo-most-failures", min=1, help="Failures in a row after which to give up."
        ),
    ] = PATIENCE.most_failures,
    healthy_after_s: Annotated[
        float,
        typer.Option(
            "--echo-healthy-after-s",
            min=0,
            help="Seconds of readiness after which earlier failures are forgotten.",
        ),
    ] = PATIENCE.healthy_after_s,
) -> None:
    """Serve, and start the engine again when it crashes or hangs.

    Every other flag goes to python -m echo_sglang.launch_server (and from there to SGLang);
    see its --help. Until an engine is ready the port answers 503 with Retry-After. SIGTERM or
    SIGINT drains: offline requests are given back, online ones finish, exit code 0; a second
    one ends at once. Exit code 1: it gave up, or a drain was cut short; 2: bad flags.
    """
    flags = parse_serve_flags(context.args)
    command = [sys.executable, "-m", LAUNCHER, *context.args, "--echo-drain-s", str(drain_s)]
    limits = Limits(
        drain_s=drain_s,
        hang_s=hang_s,
        start_s=start_s,
        most_failures=most_failures,
        healthy_after_s=healthy_after_s,
    )
    listener = listen(flags)
    supervisor = Supervisor(
        command, os.environ, listener, tls=dict(flags.tls), limits=limits, clock=time.monotonic
    )
    raise typer.Exit(supervisor.run())
