"""echo-sglang inspect: what a profile is of, and how good it was when it was made."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from echo_sglang.adapter.profiles import load_profile
from echo_sglang.cli.output import (
    JsonFlag,
    print_facts,
    print_json,
    print_reports,
    refuses_clearly,
    report_values,
)


@refuses_clearly
def inspect(
    profile: Annotated[Path, typer.Argument(help="What echo-sglang train wrote.")],
    as_json: JsonFlag = False,
) -> None:
    """Show the server that a profile was made on and the errors on held-out iterations."""
    found = load_profile(profile)
    identity, provenance = asdict(found.identity), asdict(found.provenance)
    today = datetime.now(UTC).date().isoformat()
    model = {
        "age_days": found.age_days(today),
        "fitted_iterations": found.model.samples,
        "largest_extend_tokens": found.model.largest_extend_tokens,
    }
    if as_json:
        regimes = report_values(found.reports)
        print_json({"identity": identity, "provenance": provenance, **model, "regimes": regimes})
        return
    flags = " ".join(identity.pop("flags"))
    facts = {**identity, "flags": flags, **provenance, **model}
    print_facts({name.replace("_", " "): value for name, value in facts.items()})
    print_reports("Errors on held-out iterations", found.reports)
