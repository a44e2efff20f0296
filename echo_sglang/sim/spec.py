"""One emulated run as a value that can be written down, sent to a process and compared."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, get_type_hints

from echo_sglang.config import EchoConfig
from echo_sglang.errors import WorkloadError
from echo_sglang.sim.arrivals import Lengths, PoissonTraffic
from echo_sglang.sim.batch_jobs import BatchFile, LengthsFile
from echo_sglang.sim.conversations import Conversations
from echo_sglang.sim.documents import DocumentQuestions, Order
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.traces import AzureTrace, MooncakeTrace, Part, ServeGenRates
from echo_sglang.sim.workload import Request, Workload, merge


class Recipe(Protocol):
    """Draws requests: PoissonTraffic, AzureTrace, DocumentQuestions and the like."""

    def requests(self, seed: int) -> list[Request]:
        """The requests of one seed, in order of arrival."""


DEFAULT_SLO = Slo()

_KINDS = {
    kind.__name__: kind
    for kind in (
        AzureTrace, BatchFile, Conversations, DocumentQuestions, EchoConfig, Lengths, LengthsFile,
        MooncakeTrace, Part, PoissonTraffic, ServeGenRates, ServerSetup, Slo,
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """A workload on a server on a device. device: HARDWARE:MODEL, see `catalog`.

    recipes: drawn with `seed` and merged; a recipe earlier in the list goes first where
    requests arrive together. window_s, grace_s: see `Emulator`; computes: see `EmulatedWorker`.
    """

    device: str
    setup: ServerSetup
    recipes: tuple[Recipe, ...]
    seed: int
    window_s: float
    slo: Slo = DEFAULT_SLO
    grace_s: float = 60.0
    computes: bool = False

    def workload(self) -> Workload:
        """All requests. Raises WorkloadError for what the recipes cannot draw."""
        return merge(*(recipe.requests(self.seed) for recipe in self.recipes))

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads back."""
        return {f.name: _encode(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunSpec:
        """Raises WorkloadError naming what is not part of a run's description."""
        try:
            fields = {name: _decode(value) for name, value in values.items()}
            return cls(**fields | {"recipes": tuple(fields["recipes"])})
        except (KeyError, TypeError, ValueError) as error:
            raise WorkloadError(f"not the description of an emulated run: {error!r}") from error

    @property
    def digest(self) -> str:
        """Short name: equal for equal runs."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and value == float("inf"):
        return "inf"
    return value.value if isinstance(value, enum.Enum) else value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    fields = {name: _decode(item) for name, item in value.items()}
    name = fields.pop("kind", None)
    if name is None:
        return fields
    if name not in _KINDS:
        raise ValueError(f"unknown kind {name!r}; there are {', '.join(_KINDS)}")
    hints = get_type_hints(_KINDS[name])
    return _KINDS[name](**{key: _typed(hints.get(key), item) for key, item in fields.items()})


def _typed(hint: Any, value: Any) -> Any:
    """JSON has no paths, enumerations or infinity."""
    if hint is Path:
        return Path(value)
    if hint is Order:
        return Order(value)
    return float("inf") if value == "inf" else value
