"""What supervisor and engine say to each other over a socket pair, one JSON line each.

    engine -> supervisor   {"says": "accepting"}             about to accept connections itself
    supervisor -> engine   {"says": "go"}                    the supervisor no longer does
    engine -> supervisor   {"says": "beat", "ready": true}   the scheduler answered just now

The environment names the file descriptors of the socket pair and of the listening socket, and
the supervisor's process id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

CHANNEL_FD_ENV = "ECHO_SGLANG_SUPERVISOR_FD"
LISTEN_FD_ENV = "ECHO_SGLANG_LISTEN_FD"
SUPERVISOR_PID_ENV = "ECHO_SGLANG_SUPERVISOR_PID"

ACCEPTING = "accepting"
BEAT = "beat"
GO = "go"


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a supervised engine inherits."""

    channel_fd: int
    listen_fd: int
    supervisor_pid: int

    def to_environment(self) -> dict[str, str]:
        """The variables that `take_inherited` reads."""
        return {
            CHANNEL_FD_ENV: str(self.channel_fd),
            LISTEN_FD_ENV: str(self.listen_fd),
            SUPERVISOR_PID_ENV: str(self.supervisor_pid),
        }


def inherited_from(environment: Mapping[str, str]) -> Inherited | None:
    """What the environment names; None if this process has no supervisor."""
    if CHANNEL_FD_ENV not in environment:
        return None
    return Inherited(
        int(environment[CHANNEL_FD_ENV]),
        int(environment[LISTEN_FD_ENV]),
        int(environment[SUPERVISOR_PID_ENV]),
    )


def message(says: str, **fields: object) -> bytes:
    """One line of the channel."""
    return json.dumps({"says": says, **fields}).encode() + b"\n"


def parse(line: bytes) -> dict[str, object]:
    """The fields of a line; an empty mapping if it is torn."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
