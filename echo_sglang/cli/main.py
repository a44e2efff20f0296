"""The echo-sglang command.

Exit codes: 0 done, 1 a check that does not hold, 2 bad input; `batch` has one more.
"""

from __future__ import annotations

import typer

from echo_sglang.cli.batch import app as batch
from echo_sglang.cli.check import check
from echo_sglang.cli.explain import explain
from echo_sglang.cli.inspection import inspect
from echo_sglang.cli.plan import plan
from echo_sglang.cli.profile import profile
from echo_sglang.cli.serve import serve
from echo_sglang.cli.training import train

app = typer.Typer(
    name="echo-sglang",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve and keep serving; batches of offline requests; profile a server, train a model of "
    "its iteration times, plan what a fleet can do, explain decisions.",
)
app.command()(profile)
app.command()(train)
app.command()(inspect)
app.command()(check)
app.command()(plan)
app.command()(explain)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(serve)
app.add_typer(batch, name="batch")
