"""How long an accelerator takes for one batch.

`Device` is the interface. `RooflineDevice` computes it from two published descriptions, the
hardware's and the model's: every operator takes the longer of its arithmetic and its memory
traffic, and operators do not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from echo_sglang.domain.batch import BatchShape

USABLE_MEMORY = 0.9
"""Share of an accelerator's memory for weights and KV; the rest is for activations."""


class Device(Protocol):
    """Anything that predicts one iteration, such as a roofline or a measured profile."""

    def seconds(self, shape: BatchShape) -> float:
        """Seconds the device is busy with one batch; above 0 and the same every time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One accelerator. source: where the peak figures are published.

    peak_flops: dense bf16 multiply-adds counted as two, per second. compute_share,
    memory_share: what real kernels reach of the peaks. overhead_s: fixed cost of an
    iteration (launches, sampling, copies). link_bytes_per_s: to its peers, one direction.
    """

    name: str
    peak_flops: float
    compute_share: float
    memory_bytes_per_s: float
    memory_share: float
    overhead_s: float
    memory_bytes: float
    link_bytes_per_s: float = 0.0
    source: str

    @property
    def flops(self) -> float:
        """Floating-point operations per second that kernels reach."""
        return self.peak_flops * self.compute_share

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second that kernels reach."""
        return self.memory_bytes_per_s * self.memory_share


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A dense decoder with grouped-query attention and a gated MLP. source: its config.json.

    every_parameter_counts: charge every token two operations for each parameter of the model,
    embedding and output projection too, as back-of-the-envelope rooflines do. Otherwise the
    embedding is looked up, and only rows that sample are projected on the vocabulary.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    bytes_per_value: int = 2
    tied_embeddings: bool = False
    every_parameter_counts: bool = False
    source: str

    @property
    def parameters(self) -> int:
        """All weights but the norms."""
        tables = 1 if self.tied_embeddings else 2
        return self.layer_parameters + tables * self.head_parameters

    def projection_flops(self, tokens: int, sampled: int) -> float:
        """Of everything but attention, for `tokens` of which `sampled` give an output."""
        if self.every_parameter_counts:
            return 2.0 * self.parameters * tokens
        return 2.0 * (self.layer_parameters * tokens + self.head_parameters * sampled)

    @property
    def layer_parameters(self) -> int:
        """Weights that every token is multiplied with, over all layers."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        """Weights of the output projection, used once per row that samples."""
        return self.hidden * self.vocabulary

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_value

    @property
    def flops_per_pair(self) -> int:
        """Attention of one query token to one key: score and weighted sum, all layers."""
        return 4 * self.layers * self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class RooflineDevice:
    """`tensor_parallel` accelerators that share one model evenly."""

    hardware: Hardware
    model: ModelShape
    tensor_parallel: int = 1

    @property
    def name(self) -> str:
        """Such as "A100-80G:Llama-3.1-8B" or "H100x4:Llama-3.1-70B"."""
        width = f"x{self.tensor_parallel}" if self.tensor_parallel > 1 else ""
        return f"{self.hardware.name}{width}:{self.model.name}"

    @property
    def kv_pool_tokens(self) -> int:
        """KV tokens that fit beside the weights in USABLE_MEMORY of it."""
        memory = self.tensor_parallel * self.hardware.memory_bytes
        weights = self.model.parameters * self.model.bytes_per_value
        return max(int((USABLE_MEMORY * memory - weights) / self.model.kv_bytes_per_token), 1)

    def seconds(self, shape: BatchShape) -> float:
        """Overhead + projections + prefill attention + decode attention + exchange.

        A prefill is taken to sample one token; its reading of cached KV is hidden behind
        its arithmetic.
        """
        model, hardware = self.model, self.hardware
        tokens = shape.extend_tokens + shape.decode_rows
        sampled = shape.decode_rows + (1 if shape.extend_tokens else 0)
        weights = (model.layer_parameters + model.head_parameters) * model.bytes_per_value
        projections_s = max(
            model.projection_flops(tokens, sampled) / hardware.flops,
            weights / hardware.bytes_per_s,
        )
        shared_s = (projections_s + self._attention_s(shape)) / self.tensor_parallel
        return hardware.overhead_s + shared_s + self._exchange_s(tokens)

    def least_seconds(self, shape: BatchShape) -> float:
        """What `shape` costs in the best of batches: no overhead, weights read for free."""
        model = self.model
        tokens = shape.extend_tokens + shape.decode_rows
        flops = model.projection_flops(tokens, shape.decode_rows)
        shared_s = flops / self.hardware.flops + self._attention_s(shape)
        return shared_s / self.tensor_parallel + self._exchange_s(tokens)

    def _attention_s(self, shape: BatchShape) -> float:
        """Prefill is bound by arithmetic over half the square, decode by reading KV."""
        model, hardware = self.model, self.hardware
        pairs = shape.extend_pairs + shape.extend_square / 2
        prefill_s = pairs * model.flops_per_pair / hardware.flops
        return prefill_s + shape.decode_kv_tokens * model.kv_bytes_per_token / hardware.bytes_per_s

    def _exchange_s(self, tokens: int) -> float:
        """Two ring all-reduces of the hidden states per layer."""
        if self.tensor_parallel == 1:
            return 0.0
        share = 2 * (self.tensor_parallel - 1) / self.tensor_parallel
        message = tokens * self.model.hidden * self.model.bytes_per_value
        return 2 * self.model.layers * share * message / self.hardware.link_bytes_per_s
