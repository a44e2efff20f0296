"""What the examples share: their server's flags, and how an error ends them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from echo_sglang.errors import EchoError
from echo_sglang.frontend import OfflineBackend


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the flags of every example."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--url", default="http://127.0.0.1:30000", help="an Echo server")
    made.add_argument("--api-key", help="the server's --api-key")
    made.add_argument(
        "--chat-template", default="chatml", help="SGLang's name of the model's chat template"
    )
    made.add_argument(
        "--max-tokens", type=int, default=48, help="longest answer, tokens (default: 48)"
    )
    return made


def connect(arguments: argparse.Namespace) -> OfflineBackend:
    """The backend that the flags name."""
    return OfflineBackend(
        arguments.url, arguments.api_key, chat_template_name=arguments.chat_template
    )


def run(main: Callable[[], None]) -> None:
    """Run an example; a deliberate error is its message and exit code 2."""
    try:
        main()
    except EchoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
