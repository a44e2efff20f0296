"""Recipes as words of a command line: "azure:PATH", "poisson:2.0+8/30", "documents:900x10"."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from echo_sglang.errors import WorkloadError
from echo_sglang.sim.arrivals import PoissonTraffic
from echo_sglang.sim.batch_jobs import BatchFile, LengthsFile
from echo_sglang.sim.documents import DocumentQuestions
from echo_sglang.sim.spec import Recipe
from echo_sglang.sim.traces import AzureTrace, MooncakeTrace, Part, ServeGenRates


@dataclass(frozen=True, slots=True)
class OnlineSource:
    """Online traffic that can be cut to a time window and thinned to a share."""

    kind: str
    value: str

    def recipe(self, start_s: float, window_s: float, share: float) -> Recipe:
        """The traffic of one window, as seen by one of 1 / `share` equal servers."""
        part = Part(start_s=start_s, end_s=start_s + window_s, keep=share)
        path = Path(self.value)
        if self.kind == "azure":
            return AzureTrace(path=path, part=part)
        if self.kind == "mooncake":
            return MooncakeTrace(path=path, part=part)
        if self.kind == "servegen":
            return ServeGenRates(path=path, part=part, scale=1.0)
        poisson = _poisson(self.value)
        assert poisson is not None, self.value
        rate_per_s, size, every_s = poisson
        return PoissonTraffic(
            rate_per_s=rate_per_s * share,
            window_s=window_s,
            burst_size=math.ceil(size * share),
            burst_every_s=every_s,
        )

    def length_s(self) -> float | None:
        """Seconds from the trace's first to its last moment; None for traffic without an end.

        Reads and checks the whole file. Raises WorkloadError.
        """
        path = Path(self.value)
        if self.kind == "poisson":
            return None
        if self.kind == "servegen":
            return ServeGenRates(path=path).end_s()
        whole = AzureTrace(path=path) if self.kind == "azure" else MooncakeTrace(path=path)
        return whole.requests(0)[-1].arrival_s


ONLINE_FORMS = (
    "azure:CSV, mooncake:JSONL, servegen:CSV, poisson:RATE or, with bursts of SIZE every SECONDS, "
    "poisson:RATE+SIZE/SECONDS"
)
OFFLINE_FORMS = "documents:DOCUMENTSxQUESTIONS, lengths:CSV or batch:JSONL"


def online_source(text: str) -> OnlineSource:
    """Raises WorkloadError that lists the forms."""
    kind, _, value = text.partition(":")
    known = kind in ("azure", "mooncake", "servegen") and bool(value)
    if not known and not (kind == "poisson" and _poisson(value) is not None):
        raise WorkloadError(f"online traffic {text!r}; say {ONLINE_FORMS}")
    return OnlineSource(kind, value)


def offline_recipe(text: str) -> Recipe:
    """Raises WorkloadError that lists the forms."""
    kind, _, value = text.partition(":")
    makers: dict[str, Callable[[str], Recipe]] = {
        "documents": _documents,
        "lengths": lambda path: LengthsFile(path=Path(path)),
        "batch": lambda path: BatchFile(path=Path(path)),
    }
    if kind not in makers or not value:
        raise WorkloadError(f"offline work {text!r}; say {OFFLINE_FORMS}")
    return makers[kind](value)


def _documents(value: str) -> Recipe:
    match = re.fullmatch(r"(\d+)x(\d+)", value)
    if match is None:
        raise WorkloadError(f"documents:{value}; say documents:DOCUMENTSxQUESTIONS, as 900x10")
    return DocumentQuestions(documents=int(match[1]), questions=int(match[2]))


def _poisson(value: str) -> tuple[float, int, float] | None:
    """Requests per second, requests of a burst (0 for none), seconds between bursts; or None."""
    number = r"\d+(?:\.\d+)?"
    match = re.fullmatch(rf"({number})(?:\+(\d+)/({number}))?", value)
    if match is None:
        return None
    rate_per_s, size, every_s = float(match[1]), int(match[2] or 0), float(match[3] or 1.0)
    in_range = every_s > 0 and (rate_per_s > 0 or size > 0) and (match[2] is None or size > 0)
    return (rate_per_s, size, every_s) if in_range else None
