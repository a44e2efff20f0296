"""A server that answers over HTTP at emulated speed: no weights, wall-clock time.

Everything of SGLang runs (HTTP, tokenizer, scheduler, cache, detokenizer) on a model cut down
to nothing; the model worker answers with meaningless tokens when the described device would
have had them. For load tests and demonstrations.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.managers.utils import GenerationBatchResult

from echo_sglang.adapter.step_timer import batch_shape
from echo_sglang.sim.catalog import device_from
from echo_sglang.sim.environment import EMULATE_ENV
from echo_sglang.sim.wall_device import DeviceEvent, WallDevice

WORKER = "sglang.srt.managers.tp_worker.TpModelWorker"
VALIDATION = "sglang.srt.managers.tokenizer_manager.TokenizerManager._validate_one_request"
UNUSED_IDS = 1000
"""Special and byte tokens sit at the ends of a vocabulary; answers stay away from them."""


class LiveResult(GenerationBatchResult):
    """A result whose event is the emulated device's, whatever SGLang wants to set."""

    event: DeviceEvent | None = None

    @property
    def copy_done(self) -> DeviceEvent | None:
        """SGLang waits for it before it reads the tokens."""
        return self.event

    @copy_done.setter
    def copy_done(self, value: object) -> None:
        """SGLang's own event says nothing about the emulated device."""


class LiveWorker(TpModelWorker):
    """SGLang's worker, whose forward pass takes time instead of computing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._wall = WallDevice(device_from(os.environ[EMULATE_ENV]))

    def forward_batch_generation(
        self, batch: ScheduleBatch, *args: Any, **kwargs: Any
    ) -> GenerationBatchResult:
        """Queue `batch` on the emulated device; its tokens mean nothing."""
        shape = batch_shape(batch)
        assert shape is not None, batch.forward_mode
        event = self._wall.queue(shape)
        vocabulary = self.model_config.vocab_size
        lengths = batch.seq_lens_cpu.tolist()
        tokens = [_token(*row, vocabulary) for row in zip(batch.reqs, lengths, strict=True)]
        result = LiveResult(
            logits_output=LogitsProcessorOutput(next_token_logits=None),
            next_token_ids=torch.tensor(tokens, dtype=torch.int64),
            can_run_cuda_graph=True,
        )
        result.event = event
        return result


def _token(req: Req, length: int, vocabulary: int) -> int:
    """A token that depends on request and place only; never one that ends an answer."""
    span = max(vocabulary - 2 * UNUSED_IDS, 1)
    seed = zlib.crc32(f"{req.rid}:{length}".encode())
    return min(UNUSED_IDS, vocabulary - 1) + seed % span


def refuse_what_needs_a_model(
    validate: Callable[..., None], manager: Any, obj: Any, *args: Any, **kwargs: Any
) -> None:
    """Around SGLang's validation of a request: what it raises becomes a 400."""
    for name in ("return_logprob", "return_hidden_states"):
        if getattr(obj, name, False):
            raise ValueError(f"{name}: an emulated server computes no model; ask without it")
    validate(manager, obj, *args, **kwargs)


def register() -> None:
    """Plugin of SGLang: put the emulated worker in place if the launcher asked for one."""
    if EMULATE_ENV not in os.environ:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(WORKER, LiveWorker, HookType.REPLACE)
    HookRegistry.register(VALIDATION, refuse_what_needs_a_model, HookType.AROUND)
