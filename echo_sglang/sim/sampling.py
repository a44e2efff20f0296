"""The sampling parameters of a batch that nobody samples from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class NoSampling:
    """In place of SGLang's SamplingBatchInfo, whose tensors follow every change of a batch."""

    penalizer_orchestrator = SimpleNamespace(is_required=False)

    @classmethod
    def from_schedule_batch(cls, *_: Any) -> NoSampling:
        """The same for every batch."""
        return NO_SAMPLING

    def filter_batch(self, *_: Any) -> None:
        """Some requests left the batch."""

    def merge_batch(self, other: NoSampling) -> None:
        """Others joined it."""


NO_SAMPLING = NoSampling()
