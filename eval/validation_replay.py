"""The emulation of `validation-cpu`: what was sent to a real server, sent to an emulated one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.tag import ServiceClass
from echo_sglang.sim.catalog import device_from
from echo_sglang.sim.device import Device
from echo_sglang.sim.metrics import Slo, summarise_requests
from echo_sglang.sim.run import run as run_emulated
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.workload import Request, Segment, merge
from eval import contenders
from eval.harness.records import RunRecord
from eval.harness.workload import Workload
from eval.validation_server import GRACE_S

SETTLED_S = 30.0
"""Offline throughput counts from here: until then a real server tokenizes what waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """One emulated run, to be sent to its process. devices, ratios, seed: see `ScatteredDevice`."""

    requests: tuple[Request, ...]
    setup: ServerSetup
    devices: tuple[str, ...]
    window_s: float
    ratios: tuple[float, ...] = (1.0,)
    seed: int = 1


class ScatteredDevice:
    """One that takes as long as `devices` do in the mean, and scatters: each iteration takes
    `ratios`, drawn at random, times as long."""

    def __init__(self, devices: Sequence[Device], ratios: Sequence[float], seed: int) -> None:
        self._devices = devices
        self._ratios = ratios
        self._rng = random.Random(seed)

    def seconds(self, shape: BatchShape) -> float:
        """Another time for every batch, the same for every run."""
        mean_s = fmean([device.seconds(shape) for device in self._devices])
        return mean_s * self._rng.choice(self._ratios)


def emulate(given: Emulation) -> dict[str, Any]:
    """In a process of its own: what the emulated clients saw."""
    result = run_emulated(
        merge(given.requests),
        ScatteredDevice([device_from(d) for d in given.devices], given.ratios, given.seed),
        given.setup,
        window_s=given.window_s,
        grace_s=GRACE_S,
    )
    slo = Slo(ttft_s=contenders.SLO.ttft_s, tpot_s=contenders.SLO.tpot_s)
    records = result.emulator.records.values()
    answers = [
        Answer(record.done_s, record.request.prompt_tokens + record.received)
        for record in records
        if record.request.is_offline and record.done_s is not None and record.finish != "abort"
    ]
    return summarise_requests(records, slo, given.window_s) | steady_rates(answers, given.window_s)


class Answer(NamedTuple):
    """One offline request: answered so many seconds after the start, tokens read and written."""

    done_s: float
    tokens: int


def answers_of(record: RunRecord) -> list[Answer]:
    """The offline requests that a real server answered."""
    return [
        Answer(answer.done_s, answer.prompt_tokens + answer.output_tokens)
        for answer in record.offline
        if answer.error is None
    ]


def steady_rates(answers: Sequence[Answer], window_s: float) -> dict[str, float]:
    """Offline requests and tokens per second from SETTLED_S to the end of the window."""
    seconds = window_s - SETTLED_S
    counted = [answer.tokens for answer in answers if SETTLED_S < answer.done_s <= window_s]
    return {
        "offline_per_s": len(counted) / seconds,
        "offline_tokens_per_s": sum(counted) / seconds,
    }


def counted_from_sending(record: RunRecord) -> RunRecord:
    """The run as an emulated client sees it, which sends when the real one did: no time before."""
    online = tuple(replace(answer, due_s=answer.sent_s) for answer in record.online)
    return replace(record, online=online)


def tokens_of(model_path: Path, workload: Workload) -> dict[str, list[int]]:
    """By message: the token ids that the server makes of it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model_path))
    return {
        request.message: tokenizer.apply_chat_template(
            [{"role": "user", "content": request.message}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for request in (*workload.online, *workload.offline)
    }


def requests_as_sent(
    workload: Workload, record: RunRecord, tokens: dict[str, list[int]]
) -> tuple[Request, ...]:
    """The workload's requests at the times at which they were sent, sharing what they shared.

    Prompts become segments: what all share (the chat template's beginning), what the questions
    of a document share beyond that, and the rest.
    """
    head = shared_tokens(list(tokens.values()))
    sent_s = {answer.index: answer.sent_s for answer in record.online}
    online = [
        Request(
            rid=f"on-{request.index}",
            arrival_s=sent_s[request.index],
            prompt=_segments([head, len(tokens[request.message])], [0, 1 + request.index]),
            output_tokens=request.tokens_out,
            ignores_eos=True,
        )
        for request in workload.online
    ]
    of_document: dict[int, list[list[int]]] = {}
    for request in workload.offline:
        of_document.setdefault(request.document, []).append(tokens[request.message])
    shared = {document: shared_tokens(prompts) for document, prompts in of_document.items()}
    offline = [
        Request(
            rid=f"off-{request.index}",
            arrival_s=0.0,
            prompt=_segments(
                [head, shared[request.document], len(tokens[request.message])],
                [0, 10_000 + request.document, 20_000 + request.index],
            ),
            output_tokens=request.tokens_out,
            service_class=ServiceClass.OFFLINE,
            ignores_eos=True,
        )
        for request in workload.offline
    ]
    return merge(online, offline).requests


def shared_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with alike, at most all but the last of the shortest."""
    most = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    return next(
        (place for place in range(most) if any(p[place] != first[place] for p in prompts)), most
    )


def _segments(ends: Sequence[int], seeds: Sequence[int]) -> tuple[Segment, ...]:
    """Segments that end after so many tokens of the prompt; empty ones are left out."""
    starts = [0, *ends[:-1]]
    return tuple(
        Segment(seed, end - start)
        for start, end, seed in zip(starts, ends, seeds, strict=True)
        if end > start
    )
