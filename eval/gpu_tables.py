"""Iteration times of Llama-3.1-8B composed from measured GPU tables, as sums over its layers.

Two formats: LLMServingSim's kernel folder (vLLM kernels timed one by one, mixed attention
included) and aiconfigurator's operator tables (SGLang's GEMM and attention kernels). Both give
`seconds(work, rows, kv_tokens)`; what no row of a table was measured at is interpolated between
rows, never fitted. Neither holds scheduling or launch overhead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from echo_sglang.domain.batch import BatchShape, StepSample
from echo_sglang.errors import WorkloadError

LAYERS, HIDDEN, FFN, QKV, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = (
    32, 4096, 14336, 6144, 32, 8, 128, 128256,
)  # fmt: skip
KERNELS_PER_LAYER = {
    "layernorm": 2, "qkv_proj": 1, "rotary_emb": 1, "o_proj": 1,
    "gate_up_proj": 1, "act_fn": 1, "down_proj": 1,
}  # fmt: skip

Array = NDArray[np.float64]
Prompts = Sequence[tuple[int, int]]
"""Prompts computed in one iteration: (tokens computed, tokens before them)."""


class IterationTable(Protocol):
    """Times of iterations of one model on one GPU."""

    name: str
    max_tokens: int
    max_prompts: int

    def seconds(self, prompts: Prompts, rows: int, kv_tokens: int) -> float:
        """Time of one iteration; `rows` decode rows share `kv_tokens` evenly.

        nan outside of what was measured.
        """

    def grid(self) -> list[tuple[Prompts, int, int]]:
        """Batches (prompts, rows, KV tokens) whose attention was measured itself."""


def sample_of(table: IterationTable, prompts: Prompts, rows: int, kv_tokens: int) -> StepSample:
    """One iteration with the time the table gives it."""
    shape = BatchShape(decode_rows=rows, decode_kv_tokens=kv_tokens)
    for chunk, prefix in prompts:
        shape = shape.with_chunk(chunk, prefix)
    return StepSample(shape, table.seconds(prompts, rows, kv_tokens))


def grid_samples(table: IterationTable) -> list[StepSample]:
    """Every batch of the table's own grid."""
    samples = [sample_of(table, *batch) for batch in table.grid()]
    return [sample for sample in samples if math.isfinite(sample.seconds)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Bounds of random batches; every quantity is log-uniform between its bounds.

    A prompt has no prefix with probability `fresh_share`. `kv_capacity` bounds all KV tokens
    of a batch.
    """

    max_chunk: int = 2048
    max_prefix: int = 8192
    max_rows: int = 128
    max_kv: int = 8192
    kv_capacity: int = 262_144
    fresh_share: float = 0.4


def random_samples(
    table: IterationTable, rng: np.random.Generator, count: int, mix: Mix
) -> list[StepSample]:
    """`count` batches: 30 % extend, 35 % decode, 35 % mixed."""
    samples: list[StepSample] = []
    while len(samples) < count:
        kind = rng.choice(3, p=(0.30, 0.35, 0.35))
        rows = 0 if kind == 0 else _log_uniform(rng, 1, mix.max_rows)
        kv_tokens = rows * _log_uniform(rng, 64, mix.max_kv)
        prompts = () if kind == 1 else _random_prompts(table, rng, mix)
        held = kv_tokens + sum(chunk + prefix for chunk, prefix in prompts)
        if held > mix.kv_capacity or rows + sum(c for c, _ in prompts) > table.max_tokens:
            continue
        sample = sample_of(table, prompts, rows, kv_tokens)
        if math.isfinite(sample.seconds):
            samples.append(sample)
    return samples


def _random_prompts(table: IterationTable, rng: np.random.Generator, mix: Mix) -> Prompts:
    count = _log_uniform(rng, 1, table.max_prompts)
    chunk = max(_log_uniform(rng, 16, mix.max_chunk) // count, 1)
    fresh = rng.random() < mix.fresh_share
    prefix = 0 if fresh else _log_uniform(rng, 32, mix.max_prefix)
    return [(chunk, prefix)] * count


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return min(int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))), high)


class KernelTable:
    """LLMServingSim's folder of one GPU and model: dense, per-sequence and attention kernels.

    Attention was measured with at most one prompt beside decode rows of equal length; between
    rows its time is linear in log2(1 + length) of all four axes. Dense kernels are linear
    between measured token counts.
    """

    max_prompts = 1

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        dense = _pivot(_read(folder / "dense.csv"), "tokens")
        per_token = sum(dense[name] * n for name, n in KERNELS_PER_LAYER.items()) * LAYERS
        per_token = per_token + dense["embedding"] + dense["final_layernorm"]
        self._tokens, self._dense_us = per_token.index.to_numpy(float), per_token.to_numpy()
        heads = _pivot(_read(folder / "per_sequence.csv"), "sequences").sum(axis=1)
        self._sequences, self._head_us = heads.index.to_numpy(float), heads.to_numpy()
        self.max_tokens = int(self._tokens[-1])
        self._attention = _read(folder / "attention.csv")
        self._attention_us = _attention_grid(self._attention)

    def seconds(self, prompts: Prompts, rows: int, kv_tokens: int) -> float:
        """See `IterationTable`. At most one prompt."""
        if len(prompts) > 1:
            return math.nan
        return self.composed_seconds(prompts, rows, kv_tokens)

    def composed_seconds(self, prompts: Prompts, rows: int, kv_tokens: int) -> float:
        """As `seconds` for any number of prompts: the attention of those after the first is
        added as if each ran alone, since none were measured together."""
        tokens = rows + sum(chunk for chunk, _ in prompts)
        if tokens > self.max_tokens:
            return math.nan
        first = prompts[0] if prompts else (0, 0)
        attention_us = self._attention_of(first, rows, kv_tokens / rows if rows else 0.0)
        attention_us += sum(self._attention_of(prompt, 0, 0.0) for prompt in prompts[1:])
        dense_us = float(np.interp(tokens, self._tokens, self._dense_us))
        head_us = float(np.interp(rows + len(prompts), self._sequences, self._head_us))
        return 1e-6 * (LAYERS * attention_us + dense_us + head_us)

    def _attention_of(self, prompt: tuple[int, int], rows: int, kv_each: float) -> float:
        """Microseconds of one layer's attention."""
        point = np.log2(1.0 + np.array([*prompt, rows, kv_each]))
        return float(self._attention_us(point)[0])

    def grid(self) -> list[tuple[Prompts, int, int]]:
        """See `IterationTable`."""
        columns = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode"]
        return [
            ([(chunk, prefix)] if chunk else (), rows, rows * kv)
            for chunk, prefix, rows, kv in self._attention[columns].itertuples(index=False)
        ]


def _attention_grid(table: pd.DataFrame) -> RegularGridInterpolator:
    """Interpolator over log2(1 + axis); where an axis means nothing its value is repeated."""
    names = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode"]
    axes = [np.array(sorted(table[name].unique()), float) for name in names]
    index = [np.searchsorted(axis, table[name]) for axis, name in zip(axes, names, strict=True)]
    times = np.full([len(axis) for axis in axes], np.nan)
    times[tuple(index)] = table["time_us"]
    times[0, :] = times[0, :1]  # no prompt: its prefix means nothing
    times[:, :, 0, :] = times[:, :, 0, :1]  # no rows: nor does their length
    times[:, :, 1:, 0] = times[:, :, 1:, 1]
    times[0, :, 0, :] = 0.0
    return RegularGridInterpolator([np.log2(1.0 + axis) for axis in axes], times)


class OperatorTable:
    """aiconfigurator's tables of one GPU: bf16 GEMM, context and generation attention.

    GEMM is linear in m, n and k between rows (and proportional to n for the vocabulary, which
    is wider than any). Attention is linear in the logs of batch, length and time. Prefixes
    were not measured: a chunk after a prefix costs its share of the causal triangle of both.
    Norms, rotary embedding and activation are not in the tables and left out.
    """

    max_prompts = 8

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        gemm = pd.read_parquet(_existing(folder / "gemm_perf.parquet"))
        self._gemm = gemm[gemm.gemm_dtype == "bfloat16"]
        shapes = ((QKV, HIDDEN), (HIDDEN, HIDDEN), (2 * FFN, HIDDEN), (HIDDEN, FFN))
        per_layer = [self._gemm_ms(n, k) for n, k in shapes]
        head = self._gemm_ms(VOCABULARY, HIDDEN)
        self._tokens = np.array(sorted(set.intersection(*(set(t.index) for t in per_layer))))
        self._dense_ms = LAYERS * sum(table.reindex(self._tokens) for table in per_layer)
        self._sequences, self._head_ms = head.index.to_numpy(), head.to_numpy()
        self.max_tokens = int(self._tokens[-1])
        self._context = _llama_rows(folder / "context_attention_perf.parquet")
        self._generation = _llama_rows(folder / "generation_attention_perf.parquet")
        self._generation["kv"] = self._generation["step"] + self._generation["isl"]
        self._context_at = _log_grid(self._context, "isl")
        self._generation_at = _log_grid(self._generation, "kv")

    def seconds(self, prompts: Prompts, rows: int, kv_tokens: int) -> float:
        """See `IterationTable`. All prompts of a batch are alike."""
        tokens = rows + sum(chunk for chunk, _ in prompts)
        if tokens > self.max_tokens or len(set(prompts)) > 1:
            return math.nan
        attention_ms = 0.0
        if prompts:
            chunk, prefix = prompts[0]
            whole = chunk + prefix
            share = 1.0 - (prefix / whole) ** 2
            whole_ms = _at(self._context_at, len(prompts), whole)
            attention_ms += max(share * whole_ms, _at(self._context_at, len(prompts), chunk))
        if rows:
            attention_ms += _at(self._generation_at, rows, kv_tokens / rows)
        dense_ms = float(np.interp(tokens, self._tokens, self._dense_ms))
        head_ms = float(np.interp(rows + len(prompts), self._sequences, self._head_ms))
        return 1e-3 * (LAYERS * attention_ms + dense_ms + head_ms)

    def grid(self) -> list[tuple[Prompts, int, int]]:
        """See `IterationTable`: prompts, rows, and every third pair of both."""
        prompts: list[Prompts] = [
            [(int(isl), 0)] * int(batch)
            for batch, isl in self._context[["batch_size", "isl"]].itertuples(index=False)
        ]
        decodes = [
            (int(rows), int(rows * kv))
            for rows, kv in self._generation[["batch_size", "kv"]].itertuples(index=False)
        ]
        mixed = [(work, rows, kv) for work, (rows, kv) in product(prompts, decodes)][::3]
        alone: list[tuple[Prompts, int, int]] = [(work, 0, 0) for work in prompts]
        return [*alone, *(((), rows, kv) for rows, kv in decodes), *mixed]

    def _gemm_ms(self, n: int, k: int) -> pd.Series:
        """Times by m of an (m, k) x (k, n) product."""
        if n > (widest := int(self._gemm.n.max())):
            return self._gemm_ms(widest, k) * (n / widest)
        below_n, above_n = _neighbours(self._gemm.n, n)
        below_k, above_k = _neighbours(self._gemm.k, k)
        at_n = [
            _between(self._one_gemm(below_n, kk), self._one_gemm(above_n, kk), n, below_n, above_n)
            for kk in (below_k, above_k)
        ]
        return _between(at_n[0], at_n[1], k, below_k, above_k).dropna()

    def _one_gemm(self, n: int, k: int) -> pd.Series:
        rows = self._gemm[(self._gemm.n == n) & (self._gemm.k == k)]
        return rows.groupby("m").latency.mean().sort_index()


def _llama_rows(path: Path) -> pd.DataFrame:
    table = pd.read_parquet(_existing(path))
    keep = (table.attn_dtype == "bfloat16") & (table.kv_cache_dtype == "bfloat16")
    keep &= (table.head_dim == HEAD_DIM) & (table.num_heads == HEADS)
    keep &= (table.num_key_value_heads == KV_HEADS) & (table.window_size == 0)
    return table[keep].copy()


def _log_grid(table: pd.DataFrame, length: str) -> RegularGridInterpolator:
    pivot = table.pivot_table(index="batch_size", columns=length, values="latency")
    axes = (np.log2(pivot.index.to_numpy(float)), np.log2(pivot.columns.to_numpy(float)))
    return RegularGridInterpolator(
        axes, np.log(pivot.to_numpy()), bounds_error=False, fill_value=np.nan
    )


def _at(grid: RegularGridInterpolator, batch: float, length: float) -> float:
    return float(np.exp(grid(np.log2([batch, length]))[0]))


def _neighbours(values: pd.Series, wanted: int) -> tuple[int, int]:
    ordered = np.array(sorted(values.unique()))
    below = ordered[ordered <= wanted][-1]
    above = ordered[ordered >= wanted][0]
    return int(below), int(above)


def _between(low: pd.Series, high: pd.Series, wanted: int, below: int, above: int) -> pd.Series:
    share = 0.0 if above == below else (wanted - below) / (above - below)
    return low * (1.0 - share) + high * share


def _pivot(table: pd.DataFrame, index: str) -> pd.DataFrame:
    return table.pivot_table(index=index, columns="layer", values="time_us")


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(_existing(path))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise WorkloadError(
            f"no table {path.name} in {path.parent.name}; give the folder that holds it "
            "(see --kernels and --operators)"
        )
    return path
