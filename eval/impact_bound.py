"""How much offline work an impact of x % leaves room for: a bound that no scheduler beats.

Two rooms, and what the best use of each yields:

    beside   while online rows decode, iterations may take a share longer. The price of a
             question is what it adds to decode steps in the best portions: prompt tokens are free
             where the step is bound by reading weights, attention is not.
    idle     while nobody is online, iterations cost only what an arrival waits for the one that
             runs, half of its length on average. If offline iterations of length L fill a share g
             of all time, a first token comes g * L / 2 later. The best length is searched.

Generous on purpose: nothing is lost by switching, work is always there in the portion wanted,
the future is known where it helps (idle time is used to its last moment), waiting beside online
rows is not charged, and online requests are no slower for each other.
"""

from __future__ import annotations

from dataclasses import dataclass

from echo_sglang.domain.batch import BatchShape
from echo_sglang.sim.device import Device
from echo_sglang.sim.documents import DocumentQuestions

PORTIONS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 384, 512, 1024, 2048, 4096, 8192)
"""Offline tokens per iteration that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineAlone:
    """Online traffic as it ran without offline work.

    per_s: requests. prompt_tokens, answer_tokens: on average. busy_share: of the device's
    time. ttft_s, tpot_s: medians.
    """

    per_s: float
    prompt_tokens: float
    answer_tokens: float
    busy_share: float
    ttft_s: float
    tpot_s: float

    @property
    def rows(self) -> float:
        """Requests that decode at the same time, while any does."""
        return max(self.per_s * self.answer_tokens * self.tpot_s / self.busy_share, 1.0)

    def decode_shape(self) -> BatchShape:
        """A typical decode step."""
        rows = round(self.rows)
        kv_tokens = rows * (self.prompt_tokens + self.answer_tokens / 2)
        return BatchShape(decode_rows=rows, decode_kv_tokens=round(kv_tokens))

    def decode_share(self, device: Device) -> float:
        """Share of all time in decode steps. A prefill counts as the decode step it contains."""
        tokens = round(self.prompt_tokens)
        prefill_s = device.seconds(BatchShape().with_chunk(tokens, 0))
        decode_s = device.seconds(self.decode_shape())
        return max(self.busy_share - self.per_s * max(prefill_s - decode_s, 0.0), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestBound:
    """Questions per second. iteration_s, idle_used_share: of the best use of idle time."""

    beside_per_s: float
    idle_per_s: float
    iteration_s: float
    idle_used_share: float

    @property
    def per_s(self) -> float:
        """All of it."""
        return self.beside_per_s + self.idle_per_s


def harvest_bound(
    device: Device, alone: OnlineAlone, work: DocumentQuestions, *, ttft: float, tpot: float
) -> HarvestBound:
    """Most questions per second if first tokens may come `ttft` later and others `tpot`, both
    as shares of their time without offline work."""
    beside_per_s = tpot * alone.decode_share(device) / _least_price_s(device, alone, work)
    idle_share = 1.0 - alone.busy_share
    most_wait_s = ttft * alone.ttft_s
    best = HarvestBound(
        beside_per_s=beside_per_s, idle_per_s=0.0, iteration_s=0.0, idle_used_share=0.0
    )
    for tokens in PORTIONS:
        seconds = device.seconds(portion(work, tokens, BatchShape()))
        used = min(idle_share, 2.0 * most_wait_s / seconds)
        per_s = used * tokens / tokens_per_question(work) / seconds
        if per_s > best.idle_per_s:
            best = HarvestBound(
                beside_per_s=beside_per_s,
                idle_per_s=per_s,
                iteration_s=seconds,
                idle_used_share=used,
            )
    return best


def tokens_per_question(work: DocumentQuestions) -> float:
    """Tokens to compute: its share of the document, itself, and the answer but for the first
    token, which the prefill gives."""
    return work.document_tokens / work.questions + work.question_tokens + work.output_tokens - 1


def portion(work: DocumentQuestions, tokens: int, beside: BatchShape) -> BatchShape:
    """`beside` with `tokens` offline tokens in the proportions in which questions need them."""
    share = tokens / tokens_per_question(work)
    document, question, steps = work.document_tokens, work.question_tokens, work.output_tokens - 1
    pairs = document * document / 2 / work.questions
    pairs += question * document + question * question / 2
    kv_tokens = steps * (document + question) + steps * (steps + 1) / 2
    rows = round(share * steps)
    return BatchShape(
        extend_tokens=beside.extend_tokens + tokens - rows,
        extend_pairs=beside.extend_pairs + round(share * pairs),
        extend_square=beside.extend_square,
        decode_rows=beside.decode_rows + rows,
        decode_kv_tokens=beside.decode_kv_tokens + round(share * kv_tokens),
    )


def _least_price_s(device: Device, alone: OnlineAlone, work: DocumentQuestions) -> float:
    """Seconds that one question adds to decode steps, in the best portions."""
    decode = alone.decode_shape()
    decode_s = device.seconds(decode)
    return min(
        (device.seconds(portion(work, tokens, decode)) - decode_s)
        * tokens_per_question(work)
        / tokens
        for tokens in PORTIONS
    )
