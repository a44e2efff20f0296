"""What the supervisor itself needs of the engine's command line."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from echo_sglang.errors import ConfigError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 30000

_UNSUPPORTED = {
    "enable_http2": "--enable-http2",
    "enable_ssl_refresh": "--enable-ssl-refresh",
    "use_ray": "--use-ray",
    "smg_grpc_mode": "--smg-grpc-mode",
    "grpc_mode": "--grpc-mode",
}


@dataclass(frozen=True, slots=True)
class ServeFlags:
    """Where to listen, and how. tls: uvicorn's ssl_* options that were given."""

    host: str
    port: int
    tls: dict[str, str] = field(default_factory=dict)


def parse_serve_flags(arguments: Sequence[str]) -> ServeFlags:
    """Read the few flags out of those meant for the launcher.

    Raises ConfigError for flags whose servers cannot inherit a listening socket, and for a
    port that is none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--host", default=DEFAULT_HOST)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--tokenizer-worker-num", type=int, default=1)
    tls_names = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs", "ssl_keyfile_password")
    for name in tls_names:
        parser.add_argument(f"--{name.replace('_', '-')}")
    for name, flag in _UNSUPPORTED.items():
        parser.add_argument(flag, dest=name, action="store_true")
    try:
        known, _ = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; see python -m echo_sglang.launch_server --help") from error
    refused = [flag for name, flag in _UNSUPPORTED.items() if getattr(known, name)]
    if known.tokenizer_worker_num != 1:
        refused.append("--tokenizer-worker-num")
    if refused:
        raise ConfigError(
            f"{', '.join(refused)}: such a server cannot share its port with a supervisor; leave "
            "it out, or start python -m echo_sglang.launch_server under a supervisor of your own"
        )
    if not 1 <= known.port <= 65535:
        raise ConfigError(f"--port {known.port}: allowed is 1 to 65535")
    tls = {name: value for name in tls_names if (value := getattr(known, name))}
    return ServeFlags(known.host, known.port, tls)


def listen(flags: ServeFlags) -> socket.socket:
    """The listening socket, inheritable. Raises ConfigError if the address is taken or wrong."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            flags.host, flags.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {flags.host}: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {flags.host}:{flags.port} ({error.strerror}); another server, or "
            "another supervisor, may have it: choose another --port or end that one"
        ) from error
    listener.setblocking(False)
    return listener
