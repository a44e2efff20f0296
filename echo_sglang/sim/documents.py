"""Offline work with shared prefixes: questions about documents."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from echo_sglang.domain.tag import ServiceClass
from echo_sglang.errors import WorkloadError
from echo_sglang.sim.workload import Request, Segment


class Order(StrEnum):
    """How a client hands its questions in."""

    SHUFFLED = "shuffled"
    SORTED = "sorted"


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentQuestions:
    """`questions` about each of `documents`, all handed in at `arrival_s`.

    Lengths in tokens. The defaults have the shape of LooGLE's short-dependency questions
    (arXiv 2311.04939) cut to 4,000 tokens of document. Another job asks about other documents.
    """

    documents: int = 900
    questions: int = 10
    document_tokens: int = 4000
    question_tokens: int = 60
    output_tokens: int = 64
    order: Order = Order.SHUFFLED
    arrival_s: float = 0.0
    deadline_s: float | None = None
    max_new_tokens: int | None = None
    job: str | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if min(self.documents, self.questions, self.document_tokens, self.question_tokens) < 1:
            raise WorkloadError(
                f"{self.documents} documents of {self.document_tokens} tokens, {self.questions} "
                f"questions of {self.question_tokens}: all must be 1 or more"
            )

    def requests(self, seed: int) -> list[Request]:
        """The questions of one seed, in the order handed in."""
        of_job = b"" if self.job is None else self.job.encode()
        text_seed, order_seed = np.random.SeedSequence([seed, 2, *of_job]).spawn(2)
        rng = np.random.default_rng(text_seed)
        documents = rng.integers(1 << 62, size=self.documents).tolist()
        texts = rng.integers(1 << 62, size=(self.documents, self.questions)).tolist()
        pairs = [(d, q) for d in range(self.documents) for q in range(self.questions)]
        if self.order is Order.SHUFFLED:
            pairs = [pairs[i] for i in np.random.default_rng(order_seed).permutation(len(pairs))]
        return [
            Request(
                rid=f"{self.job or 'off'}-{d}-{q}",
                arrival_s=self.arrival_s,
                prompt=(
                    Segment(documents[d], self.document_tokens),
                    Segment(texts[d][q], self.question_tokens),
                ),
                output_tokens=self.output_tokens,
                max_new_tokens=self.max_new_tokens,
                service_class=ServiceClass.OFFLINE,
                deadline_s=self.deadline_s,
                job=self.job,
                weight=self.weight,
            )
            for d, q in pairs
        ]
