"""python -m echo_sglang.sim: one emulated run. Plans are made with `echo-sglang plan`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from echo_sglang.errors import EchoError
from echo_sglang.sim.run import execute
from echo_sglang.sim.spec import RunSpec


def build_parser() -> argparse.ArgumentParser:
    """The command `run`."""
    parser = argparse.ArgumentParser(prog="python -m echo_sglang.sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a described workload on virtual time")
    run.add_argument("spec", type=Path, help="JSON, as RunSpec.to_json writes it")
    run.add_argument("--output", type=Path, default=None, help="JSON file (default: stdout)")
    return parser


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
        run_spec(arguments)
    except (EchoError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
