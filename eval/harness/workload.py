"""One workload, the same for every server under test: who asks what, and when.

Online: chat messages arriving as a Poisson process with bursts on top. Offline: every question
about every document, submitted at once. Everything follows from the seed and the text of the
Python installation; `Workload.sha256` names the result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from echo_sglang.errors import WorkloadError
from eval.harness.corpus import Excerpt, first_words, read_documents, read_passages

WARM_UP_SEED = 2000
QUESTIONS = (
    "What is the main subject of this text, in one sentence?",
    "Which terms does the text define, and what do they mean?",
    "What should a beginner remember after reading this?",
    "Which rule in the text is the easiest one to break by mistake?",
    "What happens when something goes wrong, according to the text?",
    "Give one short example that illustrates the text.",
    "Which exceptions or special cases does the text mention?",
    "How would you explain the first paragraph to a colleague?",
    "What does the text say about names, values or attributes?",
    "Which other parts of Python does the text refer to?",
    "What is the most surprising statement in this text, and why?",
    "Write a title of at most ten words for this text.",
)
OPENINGS = (
    "I am reading about {title} and got stuck. It says:",
    "Could you help me with {title}? The documentation has this passage:",
    "A colleague sent me these notes about {title}:",
    "I found the following description of {title}:",
)
CLOSINGS = (
    "What does this mean in simple words?",
    "When would I use it in practice?",
    "Can you summarise that for me?",
    "What should I be careful about here?",
)


class Order(StrEnum):
    """How the offline questions are handed in."""

    SHUFFLED = "shuffled"
    SORTED = "sorted"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadConfig:
    """The numbers of a workload. Lengths in words, output lengths in tokens."""

    seed: int
    order: Order = Order.SHUFFLED
    window_s: float = 90.0
    online_rate_per_s: float = 0.25
    burst_size: int = 5
    burst_every_s: float = 30.0
    online_words_min: int = 60
    online_words_max: int = 200
    online_tokens_out: int = 24
    num_documents: int = 24
    document_words: int = 900
    questions_per_document: int = 12
    offline_tokens_out: int = 16

    def __post_init__(self) -> None:
        if self.window_s <= 0 or self.online_rate_per_s < 0 or self.burst_every_s <= 0:
            raise WorkloadError("window_s and burst_every_s must be above 0, the rate not below")
        if not 30 <= self.online_words_min <= self.online_words_max:
            raise WorkloadError(
                f"online words {self.online_words_min}..{self.online_words_max}: "
                "the range must start at 30 or more and not be empty"
            )
        if not 1 <= self.questions_per_document <= len(QUESTIONS):
            raise WorkloadError(
                f"questions_per_document={self.questions_per_document}; "
                f"allowed are 1 to {len(QUESTIONS)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineRequest:
    """One chat message. arrival_s counts from the start of the window."""

    index: int
    arrival_s: float
    message: str
    tokens_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRequest:
    """One question about one document; requests of a document share everything before it."""

    index: int
    document: int
    title: str
    question: str
    message: str
    tokens_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What every configuration plays. `online` is ordered by arrival, `offline` by submission."""

    config: WorkloadConfig
    online: tuple[OnlineRequest, ...]
    offline: tuple[OfflineRequest, ...]

    def to_json(self) -> dict[str, Any]:
        """The whole workload as JSON values."""
        return asdict(self)

    @property
    def sha256(self) -> str:
        """Name of the workload: equal hashes mean equal requests, texts and times."""
        text = json.dumps(self.to_json(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def without_offline(self) -> Workload:
        """The same online traffic with nothing beside it."""
        return Workload(config=self.config, online=self.online, offline=())


def build_workload(config: WorkloadConfig) -> Workload:
    """Build the workload of `config`. Raises WorkloadError if too few documents are found."""
    arrivals_seed, online_seed, offline_seed = np.random.SeedSequence(config.seed).spawn(3)
    arrivals_s = draw_arrivals(config, np.random.default_rng(arrivals_seed))
    return Workload(
        config=config,
        online=_draw_online(config, arrivals_s, np.random.default_rng(online_seed)),
        offline=_draw_offline(config, np.random.default_rng(offline_seed)),
    )


def warm_up_workload() -> Workload:
    """Five messages that no measurement sends; a server's first steps are slow and not counted."""
    config = WorkloadConfig(
        seed=WARM_UP_SEED, window_s=4, online_rate_per_s=0, burst_every_s=4, num_documents=0
    )
    return build_workload(config)


def lone_message_workload(seed: int, *, tokens_out: int) -> Workload:
    """One chat message at once: what it takes on a server that does nothing else."""
    config = WorkloadConfig(
        seed=seed,
        window_s=0.1,
        online_rate_per_s=0.0,
        burst_size=1,
        burst_every_s=0.1,
        online_tokens_out=tokens_out,
        num_documents=0,
    )
    return build_workload(config)


def draw_arrivals(config: WorkloadConfig, rng: np.random.Generator) -> list[float]:
    """Arrival seconds in [0, window_s): Poisson, plus a burst at every half period.

    The first burst comes at burst_every_s / 2, so that each window holds whole periods.
    """
    arrivals_s: list[float] = []
    if config.online_rate_per_s > 0:
        now_s = float(rng.exponential(1 / config.online_rate_per_s))
        while now_s < config.window_s:
            arrivals_s.append(now_s)
            now_s += float(rng.exponential(1 / config.online_rate_per_s))
    burst_s = config.burst_every_s / 2
    while burst_s < config.window_s:
        arrivals_s += [burst_s] * config.burst_size
        burst_s += config.burst_every_s
    return sorted(arrivals_s)


def _draw_online(
    config: WorkloadConfig, arrivals_s: Sequence[float], rng: np.random.Generator
) -> tuple[OnlineRequest, ...]:
    passages = read_passages(min_words=config.online_words_max)
    picks = rng.permutation(len(passages))
    return tuple(
        OnlineRequest(
            index=index,
            arrival_s=arrival_s,
            message=_chat_message(passages[picks[index % len(picks)]], config, rng),
            tokens_out=config.online_tokens_out,
        )
        for index, arrival_s in enumerate(arrivals_s)
    )


def _chat_message(passage: Excerpt, config: WorkloadConfig, rng: np.random.Generator) -> str:
    num_words = int(rng.integers(config.online_words_min, config.online_words_max + 1))
    opening = str(rng.choice(OPENINGS)).format(title=passage.title)
    closing = str(rng.choice(CLOSINGS))
    quoted = first_words(passage.text, num_words - len(opening.split()) - len(closing.split()))
    return f"{opening}\n{quoted}\n{closing}"


def _draw_offline(config: WorkloadConfig, rng: np.random.Generator) -> tuple[OfflineRequest, ...]:
    if config.num_documents == 0:
        return ()
    excerpts = read_documents(num_words=config.document_words)
    if len(excerpts) < config.num_documents:
        raise WorkloadError(
            f"{config.num_documents} documents of {config.document_words} words asked for, "
            f"this Python installation carries {len(excerpts)}; ask for fewer or shorter ones"
        )
    documents = [excerpts[i] for i in rng.permutation(len(excerpts))[: config.num_documents]]
    pairs = [
        (document, question)
        for document in range(config.num_documents)
        for question in QUESTIONS[: config.questions_per_document]
    ]
    shuffled = rng.permutation(len(pairs))
    if config.order is Order.SHUFFLED:
        pairs = [pairs[i] for i in shuffled]
    return tuple(
        OfflineRequest(
            index=index,
            document=document,
            title=documents[document].title,
            question=question,
            message=f"{documents[document].text}\n\nQuestion: {question}",
            tokens_out=config.offline_tokens_out,
        )
        for index, (document, question) in enumerate(pairs)
    )
