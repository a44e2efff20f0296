"""What can go wrong, and the exit code of each.

PatchError                    1   anything below; also: a check failed
├── UsageError                2   arguments that make no sense together
├── SeriesError              10   patches/ itself: series, headers, pin.json, generated files
│   └── MalformedPatchError  10   a patch that is not a strict unified diff of sglang/
├── ConflictError            11   a hunk does not fit: file, line, expected, found
└── TargetError               9   the SGLang package may not be used as it is
    ├── MissingTargetError    9   there is no SGLang package
    ├── DirtyTargetError      5   a file is neither stock nor ours
    ├── HalfAppliedError      6   an earlier run was interrupted: run `revert`
    ├── WrongVersionError     7   another SGLang release
    ├── ReadOnlyTargetError   8   no permission to write there
    ├── WriteFailedError     12   a write failed; what had been written was rolled back
    └── BusyTargetError      13   another run is at work on the same folder
"""

from __future__ import annotations


class PatchError(Exception):
    """Base of every error of the patch tool; nothing was changed unless the message says so."""

    exit_code = 1


class UsageError(PatchError):
    """Arguments that make no sense together."""

    exit_code = 2


class SeriesError(PatchError):
    """The folder of patches is incomplete or inconsistent."""

    exit_code = 10


class MalformedPatchError(SeriesError):
    """A patch is not a strict unified diff of files below sglang/."""


class ConflictError(PatchError):
    """A hunk does not fit the file it is made for."""

    exit_code = 11


class TargetError(PatchError):
    """The SGLang package may not be used as it is."""

    exit_code = 9


class MissingTargetError(TargetError):
    """There is no SGLang package where one was expected."""


class DirtyTargetError(TargetError):
    """A file is neither stock nor what the patches made of it."""

    exit_code = 5


class HalfAppliedError(TargetError):
    """An earlier run was interrupted between two files."""

    exit_code = 6


class WrongVersionError(TargetError):
    """The target is another SGLang release than the patches are made for."""

    exit_code = 7


class ReadOnlyTargetError(TargetError):
    """The target may not be written."""

    exit_code = 8


class WriteFailedError(TargetError):
    """A write failed part-way and everything was rolled back."""

    exit_code = 12


class BusyTargetError(TargetError):
    """Another run holds the lock of the same folder."""

    exit_code = 13
