"""Profiles of step times: read from disk, and held against the server that is to use them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from echo_sglang.errors import ProfileError
from echo_sglang.estimate.profile import Profile

if TYPE_CHECKING:
    from echo_sglang.adapter.scheduler import EchoScheduler
    from echo_sglang.config import EchoConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerProfile:
    """The profile that a server uses. forced: it was made on another kind of server."""

    profile: Profile
    forced: bool

    @property
    def state(self) -> str:
        """One word for the status."""
        return "forced" if self.forced else "matched"


def load_profile(path: Path) -> Profile:
    """The profile in a file. Raises ProfileError if there is none, or none that is whole."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(
            f"profile {path} cannot be read ({error}); make one with echo-sglang train"
        ) from error
    try:
        return Profile.from_json(text)
    except ProfileError as error:
        raise ProfileError(f"profile {path}: {error}") from error


def profile_for(scheduler: EchoScheduler, config: EchoConfig) -> ServerProfile | None:
    """The profile that --echo-profile names, None without it.

    Raises ProfileError if it was made on another kind of server, unless
    --echo-profile-force is given; then the differences are logged.
    """
    if not config.profile:
        return None
    from echo_sglang.adapter.identity import server_identity

    profile = load_profile(Path(config.profile))
    forced = False
    try:
        profile.require_match(server_identity(scheduler))
    except ProfileError as error:
        if not config.profile_force:
            raise ProfileError(
                f"--echo-profile {config.profile}: {error} with --echo-profile-force"
            ) from error
        logger.warning("--echo-profile-force: %s", error)
        forced = True
    # Age alone makes no profile stale: what the server measures does, see estimate/health.py.
    days = profile.age_days(datetime.now(UTC).date().isoformat())
    logger.info("--echo-profile %s: made %d days ago", config.profile, days)
    return ServerProfile(profile, forced)
