"""What the emulated experiment plays: online traffic and the offline work beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from echo_sglang.errors import WorkloadError
from echo_sglang.sim.arrivals import PoissonTraffic
from echo_sglang.sim.batch_jobs import LengthsFile
from echo_sglang.sim.documents import DocumentQuestions, Order
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.spec import Recipe
from echo_sglang.sim.traces import AzureTrace, Part

NO_OFFLINE = None
AZURE = "azure_llm_2023/AzureLLMInferenceTrace_{kind}.csv"
ARXIV = "vidur_processed/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv"
ARXIV_REQUESTS = 9000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Online traffic with its SLO, and offline work, for one window.

    documents, lengths: None for none.
    """

    name: str
    online: Recipe
    window_s: float
    slo: Slo
    documents: DocumentQuestions | None = None
    lengths: LengthsFile | None = None

    @property
    def has_documents(self) -> bool:
        """True if the order of the offline work matters."""
        return self.documents is not None

    def recipes(self, order: Order | None) -> tuple[Recipe, ...]:
        """All recipes, documents in `order`; only the online one for NO_OFFLINE."""
        if order is NO_OFFLINE:
            return (self.online,)
        found: list[Recipe] = [self.online]
        if self.documents is not None:
            found.append(replace(self.documents, order=order))
        if self.lengths is not None:
            found.append(self.lengths)
        return tuple(found)

    def cut(self, window_s: float) -> Scenario:
        """The same for a shorter window."""
        return replace(self, window_s=min(window_s, self.window_s))


def _poisson(data: Path, window_s: float) -> Recipe:
    return PoissonTraffic(rate_per_s=2.0, window_s=window_s)


def _azure(kind: str, keep: float) -> Callable[[Path, float], Recipe]:
    """Ten minutes from the tenth on, as much of it as one A100 answers in time, or of code, whose
    bursts it does not, as much as keeps it busy a sixth of the time."""

    def recipe(data: Path, window_s: float) -> Recipe:
        part = Part(start_s=600.0, end_s=600.0 + window_s, keep=keep)
        return AzureTrace(path=data / AZURE.format(kind=kind), part=part)

    return recipe


ONLINE: dict[str, tuple[Callable[[Path, float], Recipe], Slo]] = {
    "poisson": (_poisson, Slo(ttft_s=0.5, tpot_s=0.05)),
    "azure-conv": (_azure("conv", 0.6), Slo(ttft_s=1.5, tpot_s=0.05)),
    "azure-code": (_azure("code", 0.1), Slo(ttft_s=1.5, tpot_s=0.05)),
}
OFFLINE = ("documents", "unshared", "both")


def scenario_named(name: str, *, data: Path, window_s: float, documents: int) -> Scenario:
    """Such as "poisson+documents": online traffic + offline work.

    data: the folder of traces. Raises WorkloadError that lists what exists.
    """
    online, _, offline = name.partition("+")
    offline = offline or "documents"
    if online not in ONLINE or offline not in OFFLINE:
        raise WorkloadError(
            f"unknown scenario {name!r}; say ONLINE+OFFLINE with online {', '.join(ONLINE)} and "
            f"offline {', '.join(OFFLINE)}"
        )
    lengths = LengthsFile(path=data / ARXIV, limit=ARXIV_REQUESTS)
    traffic, slo = ONLINE[online]
    return Scenario(
        name=f"{online}+{offline}",
        online=traffic(data, window_s),
        window_s=window_s,
        slo=slo,
        documents=None if offline == "unshared" else DocumentQuestions(documents=documents),
        lengths=None if offline == "documents" else lengths,
    )
