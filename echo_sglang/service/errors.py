"""What the batch service refuses or cannot do.

ServiceError
├── NotFoundError         no such file or batch for this owner (HTTP 404)
├── ConflictError         the state of the thing forbids it (HTTP 409)
│   └── IdempotencyError  the key was used with another body
├── InvalidInputError     a value is not allowed; `param` names it (HTTP 400)
│   └── TooLargeError     more bytes than allowed (HTTP 413)
├── LeaseLostError        another runner owns this batch now: stop working on it
├── EngineGoneError       the engine died with this line in flight
└── StoreError            the store cannot be used
    ├── StoreBusyError    locked by somebody else for too long; try again
    ├── StoreFullError    no space left; try again when there is
    ├── StoreIOError      a write or fsync failed: nothing after it is known to be kept; reopen
    ├── StoreCorruptError the database is damaged; restore a copy
    ├── StoreSchemaError  made by an older or newer release
    └── StoreInUseError   another server runs on this data folder
"""

from __future__ import annotations

from echo_sglang.errors import EchoError


class ServiceError(EchoError):
    """Base of all deliberate errors of the batch service."""


class NotFoundError(ServiceError):
    """No such file or batch for this owner."""


class ConflictError(ServiceError):
    """The present state of the file or batch forbids the request."""


class IdempotencyError(ConflictError):
    """An idempotency key came a second time with another body."""


class InvalidInputError(ServiceError):
    """A value is not allowed; `param` names it, `code` is what programs match on."""

    def __init__(self, param: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class TooLargeError(InvalidInputError):
    """More bytes than allowed."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(param, message, "file_too_large")


class LeaseLostError(ServiceError):
    """Another runner owns this batch now; what this one still knows of it is void."""


class EngineGoneError(ServiceError):
    """The engine died, or was lost, with this line in flight."""


class StoreError(ServiceError):
    """The store cannot be used."""


class StoreBusyError(StoreError):
    """The database stayed locked; nothing was written, the same call may succeed later."""


class StoreFullError(StoreError):
    """No space left; nothing was written, the same call may succeed later."""


class StoreIOError(StoreError):
    """Reading, writing or fsync failed: whether the last write is kept is not known."""


class StoreCorruptError(StoreError):
    """The database file is damaged."""


class StoreSchemaError(StoreError):
    """The store was made by an older or newer release."""


class StoreInUseError(StoreError):
    """Another server runs on this data folder."""
