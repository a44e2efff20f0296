"""Entry point of group `sglang.srt.plugins`: runs in every SGLang process.

Does nothing unless the launcher configured Echo: off means off.
"""

from __future__ import annotations

import logging
import os
import sys

from echo_sglang.config import CONFIG_ENV, EchoConfig

SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"

logger = logging.getLogger(__name__)


def register() -> None:
    """Replace SGLang's scheduler by Echo's and register Echo's cache.

    SGLang only logs a plugin that raises and would go on as stock, so a failure here ends the
    process.
    """
    if CONFIG_ENV not in os.environ:
        return
    try:
        from sglang.srt.plugins.hook_registry import HookRegistry, HookType

        from echo_sglang.adapter import admin, drain, http_edge, media, radix_cache, redaction
        from echo_sglang.adapter.scheduler import EchoScheduler

        HookRegistry.register(SCHEDULER, EchoScheduler, HookType.REPLACE)
        radix_cache.register(EchoConfig.from_json(os.environ[CONFIG_ENV]))
        http_edge.install(*admin.HOOKS, *drain.HOOKS, *media.HOOKS, *redaction.HOOKS)
    except Exception:
        logger.exception("Echo cannot be registered with SGLang; refusing to serve without it")
        sys.exit(1)
