"""Errors of the emulator."""

from __future__ import annotations

from echo_sglang.errors import EchoError


class EmulationError(EchoError):
    """An emulated run broke a promise: a request answered twice or never, or a standstill."""
