"""A step-time profile: a trained model, what it holds for, and where it comes from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from echo_sglang.errors import ProfileError
from echo_sglang.estimate.plain import (
    fitted_from_plain,
    fitted_to_plain,
    model_from_plain,
    model_to_plain,
)
from echo_sglang.estimate.report import RegimeReport
from echo_sglang.estimate.step_time import StepTimeModel

FORMAT = "echo_sglang step-time profile"
VERSION = 2

_REMEDY = "make it again with `echo-sglang profile` and `echo-sglang train`"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileIdentity:
    """What a profile's times hold for.

    hardware: device name and count as the platform gives it. model: its name, not its path.
    flags: server flags that change step time; kept sorted.
    """

    hardware: str
    model: str
    sglang_version: str
    dtype: str
    tp_size: int = 1
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "flags", tuple(sorted(self.flags)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a profile comes from.

    commit: of echo_sglang. seed: of the training split. created: a date, YYYY-MM-DD.
    trace_schema: version of the step trace. samples: iterations given to the training.
    """

    commit: str
    seed: int
    created: str
    trace_schema: int
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A trained model with its identity, its validation and its provenance."""

    identity: ProfileIdentity
    model: StepTimeModel
    reports: tuple[RegimeReport, ...]
    provenance: Provenance

    def to_json(self) -> str:
        """Text that `from_json` reads back exactly.

        Raises ProfileError if the model has nothing fitted offline.
        """
        fitted = self.model.fitted
        if fitted is None:
            raise ProfileError("a model without an offline fit is no profile; train one first")
        body = {
            "identity": asdict(self.identity),
            "provenance": asdict(self.provenance),
            "reports": [asdict(report) for report in self.reports],
            "model": model_to_plain(self.model) | {"fitted": fitted_to_plain(fitted)},
        }
        head = {"format": FORMAT, "version": VERSION, "sha256": _digest(body)}
        return json.dumps(head | body, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """Read what `to_json` wrote.

        Raises ProfileError saying what is wrong: empty, truncated, not a profile, of another
        version, not finite, negative, or changed since it was written.
        """
        values = _parsed(text)
        try:
            profile = cls(
                identity=_identity(values["identity"]),
                model=_model(values["model"]),
                reports=tuple(
                    RegimeReport(**_checked(RegimeReport, report)) for report in values["reports"]
                ),
                provenance=Provenance(**_checked(Provenance, values["provenance"])),
            )
        except KeyError as error:
            raise ProfileError(f"profile lacks {error}; {_REMEDY}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ProfileError(f"profile is corrupt: {error}; {_REMEDY}") from error
        body = {name: values[name] for name in ("identity", "provenance", "reports", "model")}
        if values.get("sha256") != _digest(body):
            raise ProfileError(f"profile was changed after it was written; {_REMEDY}")
        return profile

    def require_match(self, identity: ProfileIdentity, *, force: bool = False) -> None:
        """Raise ProfileError listing each field in which a server differs, unless forced."""
        own, other = asdict(self.identity), asdict(identity)
        differences = [
            f"{name} {_shown(own[name])} (server: {_shown(other[name])})"
            for name in own
            if own[name] != other[name]
        ]
        if differences and not force:
            raise ProfileError(
                f"profile is of another server: {'; '.join(differences)}; profile this server, "
                "or force its use"
            )

    def age_days(self, today: str) -> int:
        """Days from its creation to `today`, a date such as 2026-01-31.

        Raises ProfileError if either is no date.
        """
        try:
            end, start = np.datetime64(today, "D"), np.datetime64(self.provenance.created, "D")
        except ValueError as error:
            raise ProfileError(f"profile's age: {error}; dates are written YYYY-MM-DD") from error
        return int((end - start).astype(int))


def _parsed(text: str) -> dict[str, Any]:
    if not text.strip():
        raise ProfileError(f"profile is empty; {_REMEDY}")
    try:
        values = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ProfileError(
            f"profile is truncated or no JSON (line {error.lineno}, column {error.colno}: "
            f"{error.msg}); {_REMEDY}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"profile is corrupt: {error}; {_REMEDY}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ProfileError(f"this is no {FORMAT}; {_REMEDY}")
    if values.get("version") != VERSION:
        raise ProfileError(
            f"profile has version {values.get('version')!r}, this release reads {VERSION}; "
            f"{_REMEDY}"
        )
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"a value is not finite: {name}")


def _identity(values: Mapping[str, Any]) -> ProfileIdentity:
    flags = values["flags"]
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise TypeError(f"identity flags are {flags!r}, expected a list of strings")
    return ProfileIdentity(**_checked(ProfileIdentity, {**values, "flags": tuple(flags)}))


def _model(values: Mapping[str, Any]) -> StepTimeModel:
    return model_from_plain(values, fitted_from_plain(values["fitted"]))


def _checked(kind: type, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """`values` after checking the types of the simple fields of dataclass `kind`."""
    expected = {"str": (str,), "int": (int,), "float": (int, float)}
    for field in fields(kind):
        value, wanted = values[field.name], expected.get(str(field.type))
        if wanted is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise TypeError(f"{field.name} is {value!r}, expected {field.type}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} is not finite: {value}")
    return values


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _shown(value: Any) -> str:
    return " ".join(value) or "none" if isinstance(value, tuple) else str(value)
