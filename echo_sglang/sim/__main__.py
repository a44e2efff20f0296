"""python -m echo_sglang.sim run SPEC.json: one emulated run in this process."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from echo_sglang.errors import EchoError
from echo_sglang.sim.run import execute
from echo_sglang.sim.spec import RunSpec


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code is 2 for an error that a user can do something about."""
    parser = argparse.ArgumentParser(prog="python -m echo_sglang.sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="run a described workload on virtual time")
    command.add_argument("spec", type=Path, help="JSON, as RunSpec.to_json writes it")
    command.add_argument("--output", type=Path, default=None, help="JSON file (default: stdout)")
    arguments = parser.parse_args(argv)
    try:
        spec = RunSpec.from_json(json.loads(arguments.spec.read_text("utf-8")))
        text = json.dumps(execute(spec), indent=1)
    except (EchoError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.output is None:
        print(text)
    else:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
