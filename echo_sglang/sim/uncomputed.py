"""What SGLang prepares for forward passes, left out of runs that compute none.

Sampling parameters, input tokens and the tokens that one pass hands on to the next say nothing
about which batch comes next. docs/emulator.md has what leaving them out is worth.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

from sglang.srt.managers import schedule_batch, scheduler
from sglang.srt.managers.schedule_batch import ScheduleBatch

_NOTHING_TO_ISOLATE: AbstractContextManager[None] = nullcontext()


class NoSampling:
    """In place of SGLang's SamplingBatchInfo, whose tensors follow every change of a batch."""

    penalizer_orchestrator = SimpleNamespace(is_required=False)

    @classmethod
    def from_schedule_batch(cls, *_: Any) -> NoSampling:
        """The same for every batch."""
        return _NO_SAMPLING

    def filter_batch(self, *_: Any) -> None:
        """Some requests left the batch."""

    def merge_batch(self, other: NoSampling) -> None:
        """Others joined it."""


_NO_SAMPLING = NoSampling()


class WithoutForwardPasses:
    """Overrides of SGLang's Scheduler, behind those of `Emulation`. One run per process: what
    SGLang keeps in its modules is replaced for good."""

    def init_overlap(self) -> None:
        """Nothing is published for the next pass, nor read."""
        super().init_overlap()
        self.future_map.publish = lambda *_: None
        schedule_batch.SamplingBatchInfo = NoSampling
        schedule_batch.flatten_arrays_to_pinned_cpu = lambda *_: None
        scheduler.resolve_forward_inputs = _forget_inputs

    def _forward_isolation(self, *_: Any, **__: Any) -> AbstractContextManager[None]:
        """No forward pass changes the batch, and no device still reads its tensors."""
        return _NOTHING_TO_ISOLATE

    def _relay_forward_payload(self, *_: Any) -> None:
        """The next one needs no tokens of this one."""


def _forget_inputs(batch: ScheduleBatch, _: Any) -> None:
    """In place of SGLang's `resolve_forward_inputs`."""
    batch.mix_running_indices = None
