"""A supervisor of fake engines as a process. Arguments: port, counter file, behaviours."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from echo_sglang.supervisor.flags import ServeFlags, listen
from echo_sglang.supervisor.restarts import Limits
from echo_sglang.supervisor.supervise import Supervisor

LIMITS = Limits(
    hang_s=1.0,
    drain_s=0.5,
    exit_s=0.5,
    first_backoff_s=0.05,
    largest_backoff_s=0.1,
    most_failures=4,
)


def main() -> int:
    port, *rest = sys.argv[1:]
    engine = [sys.executable, str(Path(__file__).with_name("fake_engine.py")), *rest]
    listener = listen(ServeFlags("127.0.0.1", int(port)))
    return Supervisor(
        engine, os.environ, listener, tls={}, limits=LIMITS, clock=time.monotonic
    ).run()


if __name__ == "__main__":
    sys.exit(main())
