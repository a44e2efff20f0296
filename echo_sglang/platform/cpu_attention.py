"""SGLang attention backend for a CPU: only the new tokens of a batch are queries.

Extend, chunked prefill, mixed batches and decode, paged or not, grouped-query heads, sliding
windows. What it cannot serve it refuses at start, naming the layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

from echo_sglang.errors import IncompatibleError
from echo_sglang.platform.attention_plan import Plan, Row, make_plan, run_plan

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

INSTEAD = "start the server with --attention-backend torch_native instead"


class CpuAttentionBackend(AttentionBackend):
    """Attention of one model runner; plans are made per forward pass and window.

    Raises:
        IncompatibleError: at construction, for a model with a layer that is not plain causal
            self-attention over one KV pool; at a forward pass, for a mode of speculative
            decoding or diffusion.
    """

    def __init__(self, model_runner: ModelRunner) -> None:
        super().__init__()
        self.req_to_token_pool = model_runner.req_to_token_pool
        self.token_to_kv_pool = model_runner.token_to_kv_pool
        if model_runner.use_mla_backend:
            raise IncompatibleError(f"the model uses multi-head latent attention; {INSTEAD}")
        if isinstance(self.token_to_kv_pool, SWAKVPool):
            raise IncompatibleError(
                "the model keeps its sliding-window layers in a KV pool of their own; add "
                f"--disable-hybrid-swa-memory, or {INSTEAD}"
            )
        check_layers(model_runner.model.modules())
        self._rows: tuple[Row, ...] = ()
        self._plans: dict[int | None, Plan] = {}

    def support_triton(self) -> bool:
        return False

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Read the batch's rows; the plans of the last forward pass are dropped."""
        self._rows = rows_of(forward_batch)
        self._plans = {}

    def forward_decode(self, *args, **kwargs) -> torch.Tensor:
        """One new token a row; see `forward_extend`."""
        return self.forward_extend(*args, **kwargs)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """Store the new keys and values, then attend.

        Args:
            q: [tokens, heads * head_dim].
            k: [tokens, kv_heads, head_dim], or None where the layer reads another one's cache.
            v: [tokens, kv_heads, value_dim], or None with `k`.

        Returns:
            [tokens, heads * value_dim]; zero for padding that belongs to no row.
        """
        if save_kv_cache and k is not None:
            self.token_to_kv_pool.set_kv_buffer(
                layer, KVWriteLoc(forward_batch.out_cache_loc), k, v
            )
        query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        return run_plan(
            self._plan(layer, q.dtype),
            query,
            self.token_to_kv_pool.get_key_buffer(layer.layer_id),
            self.token_to_kv_pool.get_value_buffer(layer.layer_id),
            scale=layer.scaling,
        ).flatten(1)

    def _plan(self, layer: RadixAttention, dtype: torch.dtype) -> Plan:
        window = layer.sliding_window_size if layer.sliding_window_size > -1 else None
        if window not in self._plans:
            self._plans[window] = make_plan(
                self._rows, self.req_to_token_pool.req_to_token, window=window, dtype=dtype
            )
        return self._plans[window]


def rows_of(forward_batch: ForwardBatch) -> tuple[Row, ...]:
    """Read the rows of a batch that extends, decodes or does both.

    Raises:
        IncompatibleError: for any other mode.
    """
    mode = forward_batch.forward_mode
    if mode.is_idle():
        return ()
    kv_lens = forward_batch.seq_lens.tolist()
    if mode.is_decode():
        query_lens = [min(1, kv_len) for kv_len in kv_lens]
        starts = range(len(kv_lens))
    elif mode.is_extend_or_draft_extend_or_mixed():
        query_lens = forward_batch.extend_seq_lens.tolist()
        starts = (forward_batch.extend_seq_lens.cumsum(0) - forward_batch.extend_seq_lens).tolist()
    else:
        raise IncompatibleError(
            f"forward mode {mode.name} is not served on this platform; allowed are extend, "
            f"mixed and decode. Turn speculative decoding off, or {INSTEAD}"
        )
    pool_indices = forward_batch.req_pool_indices.tolist()
    return tuple(
        Row(pool_index=pool_index, query_start=start, query_len=query_len, kv_len=kv_len)
        for pool_index, start, query_len, kv_len in zip(
            pool_indices, starts, query_lens, kv_lens, strict=True
        )
    )


def check_layers(modules: Iterable[torch.nn.Module]) -> None:
    """Raise IncompatibleError for the first attention layer that cannot be served."""
    for layer in modules:
        if not isinstance(layer, RadixAttention):
            continue
        if layer.is_cross_attention:
            problem = "attends to an encoder"
        elif layer.attn_type != AttentionType.DECODER:
            problem = f"has attention type {layer.attn_type.value}, not decoder"
        elif layer.logit_cap > 0:
            problem = f"caps its logits at {layer.logit_cap}"
        elif layer.xai_temperature_len > 0:
            problem = "scales its logits by position"
        else:
            continue
        raise IncompatibleError(f"attention layer {layer.layer_id} {problem}; {INSTEAD}")
