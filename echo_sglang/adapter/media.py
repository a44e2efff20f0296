"""Which media a request may name: what it carries itself, unless the operator allows more.

SGLang fetches any URL and opens any file that a request names. Here a request may carry
`data:` URLs and raw base64; http and https URLs only if --allowed-media-domains names domains
(SGLang then checks them, redirects included); files never. `--echo-media any` is SGLang's way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from sglang.srt.plugins.hook_registry import HookType

from echo_sglang.adapter.http_edge import EdgeHook
from echo_sglang.config import CONFIG_ENV, EchoConfig, MediaSources

FIELDS = ("image_data", "video_data", "audio_data")
_SHOWN_CHARACTERS = 60


def refuse_named_media(obj: Any, *, domains_allowed: bool) -> None:
    """Raise ValueError, which SGLang answers with 400, if `obj` names media it may not."""
    for field in FIELDS:
        for source in _sources(getattr(obj, field, None)):
            _check(field, source, domains_allowed=domains_allowed)


def _check(field: str, source: str, *, domains_allowed: bool) -> None:
    lowered = source.lower()
    if lowered.startswith("data:"):
        return
    if lowered.startswith(("http://", "https://")):
        if domains_allowed:
            return
        raise ValueError(
            f"{field}: the URL {_shown(source)} is not fetched; send the media as a data: URL, or "
            "start the server with --allowed-media-domains"
        )
    # SGLang takes raw base64 of images; any other text for the name of a file.
    if field == "image_data" and not lowered.startswith(("/", "file:", ".")):
        return
    raise ValueError(f"{field}: {_shown(source)} is not opened; send the media as a data: URL")


def _sources(value: Any) -> Iterator[str]:
    """Every text in a field of media: alone, in lists, in objects, or SGLang's own records."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _sources(item)
    elif isinstance(value, Mapping):
        yield from _sources(value.get("url"))
    elif hasattr(value, "url"):
        yield from _sources(value.url)


def _shown(source: str) -> str:
    return repr(source[:_SHOWN_CHARACTERS])


def check_media(manager: Any, obj: Any, *_: Any, **__: Any) -> None:
    """Before `TokenizerManager.generate_request`, which every endpoint comes to."""
    if all(getattr(obj, field, None) is None for field in FIELDS):
        return
    config = EchoConfig.from_json(os.environ[CONFIG_ENV])
    if config.media != MediaSources.ANY:
        domains = manager.server_args.allowed_media_domains
        refuse_named_media(obj, domains_allowed=bool(domains))


HOOKS = (
    EdgeHook(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        check_media,
        HookType.BEFORE,
    ),
)
