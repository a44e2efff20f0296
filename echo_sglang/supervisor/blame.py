"""Whether the requests that an engine had may be why it ended.

A batch line that was in flight at engine crashes runs with few others, then alone, then never
again; so what somebody else did to the engine must not count against it.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FROM_OUTSIDE = frozenset(
    -number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
)
"""Exit codes, as in subprocess, of a process that another one ended: no fault raises these."""

_VMSTAT = Path("/proc/vmstat")
_OOM_KILLS = "oom_kill "


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnd:
    """How an engine ended.

    code: exit code of its first process. lost: exit codes of those of its other processes that
    died first, as it said before it killed itself for that; () if one of them reported an error
    of its own, None if it said nothing. killed: the supervisor ended it (it hung).
    oom_kills: processes that the kernel ended meanwhile for want of memory, on the whole
    machine; None if it does not say.
    """

    code: int
    lost: Sequence[int] | None
    killed: bool
    oom_kills: int | None


def may_be_of_requests(end: EngineEnd) -> bool:
    """False only if it is known that somebody else ended the engine.

    A hang, an error and a fault (SIGSEGV, SIGABRT, ...) may be a request's. So may a SIGKILL of
    the kernel that ran out of memory; any other SIGKILL is an operator's, or a container's.
    """
    if end.killed:
        return True
    culprits = [end.code] if end.lost is None else end.lost
    by_others = any(code in FROM_OUTSIDE for code in culprits)
    return not by_others or end.oom_kills != 0


def count_oom_kills(vmstat: Path = _VMSTAT) -> int | None:
    """How many processes this kernel has ended for want of memory; None if it does not say."""
    try:
        lines = vmstat.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = (line.removeprefix(_OOM_KILLS) for line in lines if line.startswith(_OOM_KILLS))
    return next((int(count) for count in found if count.isdigit()), None)
