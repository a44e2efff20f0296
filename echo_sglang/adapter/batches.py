"""Puts the batch service on SGLang's own server: same base URL, same life."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from echo_sglang.adapter.batch_engine import AppEngine
from echo_sglang.adapter.drain import DRAIN, Drain
from echo_sglang.config import EchoConfig
from echo_sglang.errors import ConfigError
from echo_sglang.service.feeder import FeedSettings
from echo_sglang.service.files import MAX_UPLOAD_BYTES
from echo_sglang.service.http_batches import batches_router
from echo_sglang.service.http_files import files_router
from echo_sglang.service.runner import RunnerSettings
from echo_sglang.service.service import BatchService, ServiceSettings, open_service
from echo_sglang.service.webhooks import WebhookTarget

logger = logging.getLogger(__name__)


def open_batches(config: EchoConfig, *, blame_crashes: bool = True) -> BatchService | None:
    """Open the service that the flags ask for, before a model is loaded for nothing.

    blame_crashes: see `RunnerSettings`.
    Raises ConfigError, StoreError.
    """
    if not config.data_dir:
        if config.store_url or config.files_url or config.batch_webhook_url:
            raise ConfigError(
                "--echo-store-url, --echo-files-url and --echo-batch-webhook-url need "
                "--echo-data-dir FOLDER too; it holds this server's name and working copies"
            )
        return None
    in_flight = config.batch_in_flight
    settings = ServiceSettings(
        data_dir=Path(config.data_dir),
        store_url=config.store_url or None,
        files_url=config.files_url or None,
        upgrade=config.store_upgrade,
        webhook=_webhook(config),
        tenant_header=config.batch_tenant_header or None,
        max_upload_bytes=min(MAX_UPLOAD_BYTES, int(config.batch_max_upload_mb * 1_000_000)),
        runner=RunnerSettings(
            name="",
            blame_crashes=blame_crashes,
            feed=FeedSettings(max_in_flight=in_flight),
        ),
    )
    return open_service(settings, time.time)


def install_batches(service: BatchService | None, config: EchoConfig) -> None:
    """Add the routes to SGLang's application, and the service to its life. Without a service
    the routes say how to get one. Call in the HTTP process before it serves."""
    from sglang.srt.entrypoints import http_server

    app = http_server.app
    app.include_router(files_router(lambda: service))
    app.include_router(batches_router(lambda: service))
    if service is not None:
        app.router.lifespan_context = with_service(
            app.router.lifespan_context, service, config.batch_in_flight, DRAIN
        )


def check_batch_args(server_args: Any, config: EchoConfig) -> None:
    """Raises ConfigError: batches run in the process that serves HTTP, so there is one."""
    if config.data_dir and server_args.tokenizer_worker_num > 1:
        raise ConfigError(
            f"--tokenizer-worker-num {server_args.tokenizer_worker_num} does not go with "
            "--echo-data-dir: batches run in the one process that serves HTTP; leave it at 1"
        )


def with_service(lifespan: Any, service: BatchService, max_in_flight: int, drain: Drain) -> Any:
    """The application's lifespan with the service's within; a drain ends the service first."""

    @asynccontextmanager
    async def both(app: Any) -> AsyncIterator[Any]:
        from sglang.srt.entrypoints import http_server
        from sglang.srt.runtime_context import get_serving

        async with lifespan(app) as state:
            manager = http_server.get_global_state().tokenizer_manager
            api_key = get_serving().api_key
            engine = AppEngine(app, manager, api_key=api_key, max_in_flight=max_in_flight)
            service.start(engine)
            drain.before_drain(partial(_give_back, service))
            try:
                yield state
            finally:
                await service.stop()

    return both


async def _give_back(service: BatchService) -> None:
    """SGLang ends the process as soon as its requests are done: lines in flight go back before."""
    logger.info("stopping: unfinished batch lines go back to the store")
    await service.stop()


def _webhook(config: EchoConfig) -> WebhookTarget | None:
    if not config.batch_webhook_url:
        return None
    path = Path(config.batch_webhook_secret_file)
    try:
        secret = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--echo-batch-webhook-secret-file {str(path)!r} cannot be read ({error}); it holds "
            'the signing key as "whsec_" and base64'
        ) from error
    return WebhookTarget(url=config.batch_webhook_url, secret=secret)
