"""Every error that echo_sglang raises on purpose.

EchoError
├── ConfigError           a flag or environment value is not allowed
├── RequestError          a request field is not allowed (answered with HTTP 400)
├── IncompatibleError     this SGLang (version, patches, seams) or model cannot be served
├── RankError             the ranks of one engine no longer agree
├── ServerError           a running server cannot do what a command needs of it
├── ProgramError          a request of a frontend program was refused
├── TraceError            a decision log or step trace cannot be read
├── ProfileError          a step-time profile cannot be made, read or used here
└── WorkloadError         a workload description is empty, unordered or malformed

Messages say what was given, what is allowed and what to do.
"""

from __future__ import annotations


class EchoError(Exception):
    """Base of all deliberate errors."""


class ConfigError(EchoError):
    """A flag or environment value is not allowed."""


class RequestError(EchoError):
    """A request field is not allowed; `field` names it for the HTTP 400 body."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class IncompatibleError(EchoError):
    """The installed SGLang or the chosen model cannot be served by this release."""


class RankError(EchoError):
    """The ranks of one engine no longer have the same requests, rows or KV."""


class ServerError(EchoError):
    """A running server cannot do what a command needs of it."""


class ProgramError(EchoError):
    """A request of a frontend program was refused, by the server or before it was sent."""


class TraceError(EchoError):
    """A decision log or step trace cannot be read."""


class ProfileError(EchoError):
    """A step-time profile cannot be made from these samples, read, or used on this server."""


class WorkloadError(EchoError):
    """A workload description is empty, unordered or malformed."""
