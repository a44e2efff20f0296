"""What supervisor and engine say to each other over a socket pair, one JSON line each.

    engine -> supervisor   {"says": "accepting"}             about to accept connections itself
    supervisor -> engine   {"says": "go"}                    the supervisor no longer does
    engine -> supervisor   {"says": "beat", "ready": true}   the scheduler answered just now
    engine -> supervisor   {"says": "lost", "codes": [-9]}   it ends itself, as these processes
                                                             of its own ended so; see `blame`

The environment names the file descriptors of the socket pair and of the listening socket, the
supervisor's process id, and whether the end of the last engine may have been its requests'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

CHANNEL_FD_ENV = "ECHO_SGLANG_SUPERVISOR_FD"
LISTEN_FD_ENV = "ECHO_SGLANG_LISTEN_FD"
SUPERVISOR_PID_ENV = "ECHO_SGLANG_SUPERVISOR_PID"
BLAME_ENV = "ECHO_SGLANG_BLAME_REQUESTS"
INHERITED_ENV = (CHANNEL_FD_ENV, LISTEN_FD_ENV, SUPERVISOR_PID_ENV, BLAME_ENV)

ACCEPTING = "accepting"
BEAT = "beat"
GO = "go"
LOST = "lost"


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a supervised engine inherits. blame_requests: see `blame.may_be_of_requests`, of
    the engine before it; true if there was none, as what came before is not known."""

    channel_fd: int
    listen_fd: int
    supervisor_pid: int
    blame_requests: bool = True

    def to_environment(self) -> dict[str, str]:
        """The variables that `inherited_from` reads."""
        return {
            CHANNEL_FD_ENV: str(self.channel_fd),
            LISTEN_FD_ENV: str(self.listen_fd),
            SUPERVISOR_PID_ENV: str(self.supervisor_pid),
            BLAME_ENV: str(int(self.blame_requests)),
        }


def inherited_from(environment: Mapping[str, str]) -> Inherited | None:
    """What the environment names; None if this process has no supervisor."""
    if CHANNEL_FD_ENV not in environment:
        return None
    return Inherited(
        int(environment[CHANNEL_FD_ENV]),
        int(environment[LISTEN_FD_ENV]),
        int(environment[SUPERVISOR_PID_ENV]),
        environment.get(BLAME_ENV) != "0",
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
