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
from echo_sglang.sim.answers import Answers
from echo_sglang.sim.clock import VirtualClock
from echo_sglang.sim.device import Device


@dataclass
class EmulatedResult(GenerationBatchResult):
    """A result that knows when the device would have had it."""

    end_s: float = 0.0


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
        assert shape is not None, batch.forward_mode
        end_s = self._clock.launch(self._emulated_device.seconds(shape))
        return EmulatedResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=torch.tensor(self._sampled(batch), dtype=torch.int64),
            can_run_cuda_graph=True,
            end_s=end_s,
        )

    def _sampled(self, batch: ScheduleBatch) -> list[int]:
        """A row that has seq_len tokens of context samples output number seq_len - prompt."""
        lengths = batch.seq_lens_cpu.tolist()
        return self._answers.next_tokens(
            (req.rid, length - len(req.origin_input_ids))
            for req, length in zip(batch.reqs, lengths, strict=True)
        )
