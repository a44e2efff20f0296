"""Run an experiment, such as `python eval/run.py foundation`. Results go to results/<name>/."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from echo_sglang.errors import EchoError
from eval.commands import add_commands
from eval.harness.server import exit_on_sigterm


def build_parser() -> argparse.ArgumentParser:
    """The command line of all experiments."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_commands(parser.add_subparsers(dest="experiment", required=True))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment; the exit code is 1 for an error that a user can do something about."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.execute(arguments)
    except (EchoError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
