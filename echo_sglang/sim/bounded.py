"""Stock SGLang whose prefill chunks a step-time model keeps short: an estimator and nothing else.

For experiments that ask what each part of Echo is worth. Queue, priorities, preemption and
cache are SGLang's; the model learns from the server's own iterations exactly as Echo's does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.schedule_policy import PrefillAdder

from echo_sglang.adapter.learning import LateWork, StepLearning
from echo_sglang.adapter.offline_queue import OfflineQueue
from echo_sglang.adapter.ranks import ranks_of
from echo_sglang.adapter.step_timer import StepTimer
from echo_sglang.domain.batch import BatchShape
from echo_sglang.domain.plan import Reason, StepPlan
from echo_sglang.estimate.output_length import OutputLengths
from echo_sglang.estimate.step_time import StepTimeFitter, StepTimeModel
from echo_sglang.metrics import prometheus_instruments
from echo_sglang.policy.attainment import AttainmentWindow
from echo_sglang.policy.offline_pool import PoolSettings

FIRST_CHUNK_TOKENS = 512
"""Until anything is known. Later a chunk may be twice the longest one measured."""

LEAST_CHUNK_TOKENS = 64
"""A model that is wrong about short chunks is corrected only by running some."""


class BoundedAdder(PrefillAdder):
    """SGLang's adder with a budget of prompt tokens that it must not exceed."""

    def __init__(self, *args: Any, most_tokens: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rem_chunk_tokens = min(self.rem_chunk_tokens, most_tokens)


class BoundedScheduler(StepLearning):
    """Every mixed iteration is to end within `bound_s`; prefill waits if decoding takes that long.

    Subclass it to set `bound_s`, seconds.
    """

    bound_s: float

    def init_schedule_policy(self) -> None:
        """Runs once cache, pools and chunk size are known."""
        super().init_schedule_policy()
        self.fitter = StepTimeFitter()
        self.step_timer = StepTimer()
        self.output_lengths = OutputLengths()
        self.attainment = AttainmentWindow()
        self.instruments = prometheus_instruments(enabled=False)
        self.echo_counters = {}
        self.ranks = ranks_of(self)
        self.impact = None
        self.offline_queue = OfflineQueue(PoolSettings(), lambda _: None)
        self._late_work = LateWork()
        self.device_is_synchronous = False
        self._plan = StepPlan(reason=Reason.IDLE)
        self._decided_s = self.echo_clock()
        self._most_tokens = FIRST_CHUNK_TOKENS

    def _should_defer_prefill(self, running_batch: ScheduleBatch) -> bool:
        self._decided_s = self.echo_clock()
        decode = _decode_shape(running_batch)
        prefix = 0 if self.chunked_req is None else self.chunked_req.prefix_len
        self._most_tokens = largest_chunk(
            self.fitter.model, decode, prefix, self.bound_s, most=self.chunked_prefill_size
        )
        return super()._should_defer_prefill(running_batch) or self._most_tokens < 1

    def get_prefill_adder_class(self) -> Any:
        """SGLang's adder, held to this iteration's bound."""
        return partial(BoundedAdder, most_tokens=self._most_tokens)


def bounded_by(bound_s: float) -> type[BoundedScheduler]:
    """A scheduler class whose iterations are to end within `bound_s` seconds."""
    return type("BoundedScheduler", (BoundedScheduler,), {"bound_s": bound_s})


def largest_chunk(
    model: StepTimeModel, decode: BatchShape, prefix_tokens: int, bound_s: float, *, most: int
) -> int:
    """Most prompt tokens, at most `most`, that beside `decode` end within `bound_s` by the
    model's upper bound; some whenever decoding alone leaves time."""
    known = max(FIRST_CHUNK_TOKENS, 2 * model.largest_extend_tokens)
    high = min(most, known if model.trained else FIRST_CHUNK_TOKENS)
    if not model.trained:
        return high
    if decode.decode_rows and model.upper(decode) > bound_s:
        return 0
    low = min(LEAST_CHUNK_TOKENS, high)
    while low < high:
        middle = (low + high + 1) // 2
        if model.upper(decode.with_chunk(middle, prefix_tokens)) <= bound_s:
            low = middle
        else:
            high = middle - 1
    return low


def _decode_shape(batch: ScheduleBatch) -> BatchShape:
    rows = [req for req in batch.reqs if not req.finished()]
    return BatchShape(decode_rows=len(rows), decode_kv_tokens=sum(req.seqlen for req in rows))
