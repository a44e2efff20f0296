"""The emulated accelerator: SGLang's model worker, which charges time instead of computing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.managers.utils import GenerationBatchResult

from echo_sglang.adapter.step_timer import batch_shape
from echo_sglang.domain.batch import BatchShape
from echo_sglang.sim.answers import Answers
from echo_sglang.sim.clock import VirtualClock
from echo_sglang.sim.device import Device
from echo_sglang.sim.records import BatchRows

EMPTY = BatchShape()
NO_ROWS = BatchRows((), (), ())


@dataclass
class EmulatedResult(GenerationBatchResult):
    """A result that knows what the device computed and when it would have been done."""

    shape: BatchShape = EMPTY
    rows: BatchRows = NO_ROWS
    end_s: float = 0.0

    def copy_to_cpu(self, return_logprob: bool, return_hidden_states: bool = True) -> None:
        """The tokens are where they are looked at."""


class EmulatedWorker(TpModelWorker):
    """Everything of SGLang's worker (model, pools, backends) except the forward pass.

    computes: run the tiny model all the same and replace only what it said; decisions must
    not depend on it.
    """

    def emulate(
        self, clock: VirtualClock, device: Device, answers: Answers, *, computes: bool
    ) -> None:
        """Say whose time to charge, with which device, and what to answer."""
        self._clock = clock
        self._emulated_device = device
        self._answers = answers
        self._computes = computes

    def forward_batch_generation(
        self, batch: ScheduleBatch, *args: Any, **kwargs: Any
    ) -> EmulatedResult:
        """Launch `batch` on the virtual device; its tokens are those of `Answers`."""
        if self._computes:
            super().forward_batch_generation(batch, *args, **kwargs)
        shape = batch_shape(batch)
        end_s = self._clock.launch(self._emulated_device.seconds(shape))
        lengths = batch.seq_lens_cpu.tolist()
        computed = batch.extend_lens if batch.forward_mode.is_extend() else [1] * len(lengths)
        rids = [req.rid for req in batch.reqs]
        return EmulatedResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=torch.tensor(self._sampled(batch, lengths), dtype=torch.int64),
            can_run_cuda_graph=True,
            shape=shape,
            rows=BatchRows(rids, lengths, computed),
            end_s=end_s,
        )

    def _sampled(self, batch: ScheduleBatch, lengths: list[int]) -> list[int]:
        """A row that has seq_len tokens of context samples output number seq_len - prompt."""
        return self._answers.next_tokens(
            [
                (req.rid, length - len(req.origin_input_ids))
                for req, length in zip(batch.reqs, lengths, strict=True)
            ]
        )
