"""The tag of a request: its service class, its SLOs, its deadline and the job it belongs to.

Clients say `service_tier` and optional extras in `echo`; both travel to the scheduler
inside SGLang's `custom_params` under the key "echo" (one level of nesting: SGLang's
Rust server and its msgpack IPC take no more).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from echo_sglang.config import MAX_WEIGHT, MIN_WEIGHT
from echo_sglang.errors import RequestError

OFFLINE_TIERS = frozenset({"flex"})
ONLINE_TIERS = frozenset({"auto", "default", "priority", "scale", "fast"})
EXTRA_FIELDS = ("ttft_ms", "tpot_ms", "deadline", "job", "weight")
CUSTOM_PARAMS_KEY = "echo"
MAX_JOB_CHARACTERS = 128


class ServiceClass(StrEnum):
    """Who waits for the answer: a person (online) or a batch job (offline)."""

    ONLINE = "online"
    OFFLINE = "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTag:
    """What the scheduler must know of a request besides its tokens.

    ttft_ms, tpot_ms: per-request SLO in milliseconds, None for the server's default.
    deadline_unix_s: wall-clock second by which an offline answer is wanted, or None.
    job: who an offline request belongs to (a tenant, a batch); jobs share the server fairly.
    weight: its job's share against others', None for 1. Both mean nothing for online requests.
    """

    service_class: ServiceClass = ServiceClass.ONLINE
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    deadline_unix_s: float | None = None
    job: str | None = None
    weight: float | None = None

    @property
    def service_tier(self) -> str:
        """The tier named in the answer: "flex" for offline, "default" for online."""
        return "flex" if self.service_class is ServiceClass.OFFLINE else "default"

    def to_custom_params(self) -> dict[str, str | float]:
        """The value stored under CUSTOM_PARAMS_KEY; fields left at None are absent."""
        params: dict[str, str | float] = {"class": self.service_class.value}
        if self.ttft_ms is not None:
            params["ttft_ms"] = self.ttft_ms
        if self.tpot_ms is not None:
            params["tpot_ms"] = self.tpot_ms
        if self.deadline_unix_s is not None:
            params["deadline"] = self.deadline_unix_s
        if self.job is not None:
            params["job"] = self.job
        if self.weight is not None:
            params["weight"] = self.weight
        return params

    @classmethod
    def from_custom_params(cls, custom_params: Mapping[str, Any] | None) -> RequestTag:
        """Read back what `to_custom_params` wrote. An absent tag means online, no extras.

        Raises RequestError if the stored value is not one that `to_custom_params` writes.
        """
        params = (custom_params or {}).get(CUSTOM_PARAMS_KEY)
        if params is None:
            return cls()
        if not isinstance(params, Mapping):
            raise RequestError(
                "custom_params.echo", f"expected an object, got {reprlib.repr(params)}"
            )
        name = params.get("class", ServiceClass.ONLINE.value)
        plain = _PLAIN_TAGS.get(name) if isinstance(name, str) else None
        if plain is None:
            raise RequestError(
                "custom_params.echo.class",
                f"expected 'online' or 'offline', got {reprlib.repr(name)}",
            )
        if len(params) == 1 and "class" in params:
            return plain
        return _with_extras(plain.service_class, "custom_params.echo", params)


_PLAIN_TAGS = {member.value: RequestTag(service_class=member) for member in ServiceClass}
"""Most requests have no extras: their tags are made once."""


def resolve_tag(
    service_tier: object,
    extras: object,
    custom_params: Mapping[str, Any] | None,
    *,
    now_unix_s: float,
) -> RequestTag:
    """The tag of a request that may carry it in either of two ways.

    A client says it in `service_tier` and `echo` (see `parse_tag`), or ready-made in
    `custom_params.echo`, as `to_custom_params` writes it. Both at once is refused: neither
    silently wins. Raises RequestError naming the field, under the rules of `parse_tag`.
    """
    stored = (custom_params or {}).get(CUSTOM_PARAMS_KEY)
    if stored is None:
        return parse_tag(service_tier, extras, now_unix_s=now_unix_s)
    if service_tier is not None or extras is not None:
        raise RequestError(
            "custom_params.echo",
            "sent together with service_tier or echo; send one of the two ways",
        )
    tag = RequestTag.from_custom_params(custom_params)
    _refuse_unknown_fields("custom_params.echo", stored, ("class", *EXTRA_FIELDS))
    _refuse_past_deadline("custom_params.echo.deadline", tag.deadline_unix_s, now_unix_s)
    return tag


def parse_tag(service_tier: object, extras: object, *, now_unix_s: float) -> RequestTag:
    """Turn what a client sent in `service_tier` and `echo` into a tag.

    service_tier: "flex" is offline; None, "auto", "default", "priority", "scale" and
    "fast" are online. extras: the request's `echo` object, or None.
    Raises RequestError naming the field: unknown tier, unknown or non-numeric extra,
    SLO not above zero, deadline not after `now_unix_s`, a job that is no short printable
    name, a weight out of range or without a job.
    """
    service_class = _service_class(service_tier)
    if extras is None:
        return RequestTag(service_class=service_class)
    if not isinstance(extras, Mapping):
        raise RequestError("echo", f"expected an object, got {type(extras).__name__}")
    _refuse_unknown_fields("echo", extras, EXTRA_FIELDS)
    tag = _with_extras(service_class, "echo", extras)
    _refuse_past_deadline("echo.deadline", tag.deadline_unix_s, now_unix_s)
    return tag


def _with_extras(service_class: ServiceClass, field: str, extras: Mapping[str, Any]) -> RequestTag:
    tag = RequestTag(
        service_class=service_class,
        ttft_ms=_positive_ms(f"{field}.ttft_ms", extras.get("ttft_ms")),
        tpot_ms=_positive_ms(f"{field}.tpot_ms", extras.get("tpot_ms")),
        deadline_unix_s=_number(f"{field}.deadline", extras.get("deadline")),
        job=_job(f"{field}.job", extras.get("job")),
        weight=_weight(f"{field}.weight", extras.get("weight")),
    )
    if tag.weight is not None and tag.job is None:
        raise RequestError(f"{field}.weight", f"a weight is that of a job; name it in {field}.job")
    return tag


def _service_class(service_tier: object) -> ServiceClass:
    if service_tier is None:
        return ServiceClass.ONLINE
    if isinstance(service_tier, str):
        if service_tier in ONLINE_TIERS:
            return ServiceClass.ONLINE
        if service_tier in OFFLINE_TIERS:
            return ServiceClass.OFFLINE
    allowed = ", ".join(sorted(OFFLINE_TIERS | ONLINE_TIERS))
    raise RequestError(
        "service_tier", f"unknown tier {reprlib.repr(service_tier)}; allowed are {allowed}"
    )


def _refuse_unknown_fields(field: str, given: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    unknown = sorted(str(key) for key in given if key not in allowed)
    if unknown:
        raise RequestError(
            f"{field}.{unknown[0][:40]}", f"unknown field; allowed are {', '.join(allowed)}"
        )


def _refuse_past_deadline(field: str, deadline_unix_s: float | None, now_unix_s: float) -> None:
    if deadline_unix_s is not None and deadline_unix_s <= now_unix_s:
        raise RequestError(
            field,
            f"{deadline_unix_s:.3f} is not in the future (now is {now_unix_s:.3f}, Unix seconds)",
        )


def _number(field: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequestError(field, f"expected a number, got {reprlib.repr(value)}")
    number = float(value) if abs(value) < 1e300 else math.inf
    if not math.isfinite(number):
        raise RequestError(field, f"expected a finite number, got {reprlib.repr(value)}")
    return number


def _positive_ms(field: str, value: object) -> float | None:
    number = _number(field, value)
    if number is not None and number <= 0:
        raise RequestError(field, f"expected milliseconds above 0, got {number:g}")
    return number


def _job(field: str, value: object) -> str | None:
    if value is None:
        return None
    named = isinstance(value, str) and value.strip() == value and value.isprintable()
    if not named or not 1 <= len(str(value)) <= MAX_JOB_CHARACTERS:
        raise RequestError(
            field,
            f"expected a printable name of 1 to {MAX_JOB_CHARACTERS} characters without spaces "
            f"around it, got {reprlib.repr(value)}",
        )
    return str(value)


def _weight(field: str, value: object) -> float | None:
    number = _number(field, value)
    if number is not None and not MIN_WEIGHT <= number <= MAX_WEIGHT:
        raise RequestError(field, f"expected {MIN_WEIGHT} to {MAX_WEIGHT:g}, got {number:g}")
    return number
