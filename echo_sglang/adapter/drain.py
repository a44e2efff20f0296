"""An orderly end of the server: SIGTERM to the HTTP process.

    1. new requests, health checks included, are answered with 503 and Retry-After
    2. whoever registered (`before_drain`) lets go of its work
    3. every offline request is given back with 503; what it computed stays in the cache
    4. online requests finish, for at most --echo-drain-s; those left are aborted
    5. SGLang's own shutdown, exit code 0

A second SIGTERM ends the process tree at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sglang.srt.managers.io_struct import SetInternalStateReq
from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.utils import kill_process_tree

from echo_sglang.adapter.http_edge import EdgeHook
from echo_sglang.config import CONFIG_ENV, EchoConfig

DRAIN_KEY = "echo_drain"
"""The key of SGLang's set_internal_state that asks the scheduler to give offline work back."""
RETRY_AFTER_S = 10
LISTENER_S = 10.0
POLL_S = 0.1

logger = logging.getLogger(__name__)

Listener = Callable[[], Awaitable[None]]


class Drain:
    """The drain of this HTTP process; `active` from its first moment on."""

    def __init__(self) -> None:
        self.active = False
        self._listeners: list[Listener] = []
        self._task: asyncio.Task[None] | None = None

    def before_drain(self, listener: Listener) -> None:
        """Await `listener` before offline requests are given back, for at most LISTENER_S."""
        self._listeners.append(listener)

    def begin(self, manager: Any, drain_s: float) -> None:
        """Start draining. Call in the event loop, once."""
        self.active = True
        self._task = asyncio.get_running_loop().create_task(self._run(manager, drain_s))

    async def _run(self, manager: Any, drain_s: float) -> None:
        until_s = time.monotonic() + drain_s
        try:
            await self._tell_listeners()
            giving_back = manager.set_internal_state(
                SetInternalStateReq(server_args={DRAIN_KEY: 1})
            )
            await asyncio.wait_for(giving_back, max(drain_s, LISTENER_S))
            while manager.rid_to_state and time.monotonic() < until_s:
                await asyncio.sleep(POLL_S)
            if manager.rid_to_state:
                left = len(manager.rid_to_state)
                logger.warning("Drain: %d requests left after %g s, aborted", left, drain_s)
                manager.abort_request(abort_all=True)
        except Exception:
            logger.exception("Drain failed; shutting down all the same")
        finally:
            manager.gracefully_exit = True

    async def _tell_listeners(self) -> None:
        for listener in self._listeners:
            try:
                await asyncio.wait_for(listener(), LISTENER_S)
            except Exception:
                logger.exception("Drain: %r failed", listener)


DRAIN = Drain()
"""The one of this process."""


def on_sigterm(stock: Callable[..., None], handler: Any, *signal_facts: Any) -> None:
    """Around `SignalHandler.sigterm_handler`, which SGLang runs in its event loop."""
    if DRAIN.active:
        logger.warning("SIGTERM while draining: ending at once")
        kill_process_tree(os.getpid())
        return
    config = EchoConfig.from_json(os.environ[CONFIG_ENV])
    logger.warning("SIGTERM: draining, for at most %g s", config.drain_s)
    DRAIN.begin(handler.tokenizer_manager, config.drain_s)


HOOKS = (
    EdgeHook(
        "sglang.srt.managers.tokenizer_manager.SignalHandler.sigterm_handler",
        on_sigterm,
        HookType.AROUND,
    ),
)
