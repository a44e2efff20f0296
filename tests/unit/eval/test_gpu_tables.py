"""Iteration times are composed from tables as their documentation says."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from echo_sglang.errors import WorkloadError
from echo_sglang.estimate.training import train
from eval import step_time
from eval.gpu_tables import (
    FFN,
    HIDDEN,
    KERNELS_PER_LAYER,
    LAYERS,
    QKV,
    KernelTable,
    Mix,
    OperatorTable,
    grid_samples,
    random_samples,
)


@pytest.fixture
def kernels(tmp_path: Path) -> KernelTable:
    """1 us a dense kernel and token, 10 us a sequence, attention of 100 us a doubling."""
    layers = (*KERNELS_PER_LAYER, "embedding", "final_layernorm")
    dense = [(layer, tokens, 1.0 * tokens) for layer in layers for tokens in (1, 101, 201)]
    pd.DataFrame(dense, columns=["layer", "tokens", "time_us"]).to_csv(tmp_path / "dense.csv")
    heads = [("lm_head", 1, 10.0), ("lm_head", 11, 110.0)]
    columns = ["layer", "sequences", "time_us"]
    pd.DataFrame(heads, columns=columns).to_csv(tmp_path / "per_sequence.csv")
    attention = [
        (chunk, prefix, rows, kv, 100.0 * np.log2(1 + chunk) + 100.0 * np.log2(1 + rows))
        for chunk, prefix, rows, kv in product((0, 15, 63), (0, 63), (0, 1, 3), (0, 15, 63))
        if (chunk or (rows and not prefix)) and bool(rows) == bool(kv)
    ]
    columns = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"]
    pd.DataFrame(attention, columns=columns).to_csv(tmp_path / "attention.csv")
    return KernelTable(tmp_path)


def test_an_iteration_is_the_sum_of_its_kernels_over_all_layers(kernels: KernelTable) -> None:
    # 8 dense kernels a layer and 2 outside, 16 tokens; 2 sequences; log2(16) + log2(2) = 5.
    expected_us = (8 * LAYERS + 2) * 16 + 20 + LAYERS * 500
    assert kernels.seconds([(15, 0)], 1, 15) == pytest.approx(1e-6 * expected_us)


def test_between_rows_attention_is_linear_in_the_logs(kernels: KernelTable) -> None:
    # 31 tokens: log2(32) = 5, halfway between log2(16) and log2(64).
    expected_us = (8 * LAYERS + 2) * 31 + 10 + LAYERS * 500
    assert kernels.seconds([(31, 17)], 0, 0) == pytest.approx(1e-6 * expected_us)


def test_what_was_not_measured_has_no_time(kernels: KernelTable) -> None:
    assert np.isnan(kernels.seconds([(15, 0), (15, 0)], 0, 0))
    assert np.isnan(kernels.seconds([(300, 0)], 0, 0))


def test_the_grid_holds_each_measured_batch_once(kernels: KernelTable) -> None:
    samples = grid_samples(kernels)
    # Chunks 2 * 2 prefixes * (1 + 2 rows * 2 lengths), and 2 * 2 of decode alone.
    assert len(samples) == 4 * 5 + 4
    assert len({sample.shape for sample in samples}) == 24


def test_random_batches_depend_on_the_seed_alone_and_keep_their_bounds(
    kernels: KernelTable,
) -> None:
    mix = Mix(max_chunk=63, max_prefix=63, max_rows=3, max_kv=63, kv_capacity=150)
    first = random_samples(kernels, np.random.default_rng(1), 50, mix)
    assert first == random_samples(kernels, np.random.default_rng(1), 50, mix)
    for sample in first:
        shape = sample.shape
        assert shape.extend_tokens <= 63 and shape.decode_rows <= 3
        held = shape.decode_kv_tokens + shape.extend_tokens + shape.extend_prefix_tokens
        assert held <= 150


@pytest.fixture
def operators(tmp_path: Path) -> OperatorTable:
    """GEMM in time m * n * k * 1e-12 ms, attention in batch * length * 1e-3 ms."""
    gemm = [
        ("bfloat16", m, n, k, 1e-12 * m * n * k)
        for m, n, k in product((1, 4096), (4096, 8192, 65536), (4096, 8192, 16384))
    ]
    columns = ["gemm_dtype", "m", "n", "k", "latency"]
    pd.DataFrame(gemm, columns=columns).to_parquet(tmp_path / "gemm_perf.parquet")
    for name, step in (("context", 0), ("generation", 1)):
        rows = [
            {
                "batch_size": batch, "isl": length if name == "context" else 1,
                "step": 0 if name == "context" else length - step, "num_heads": 32,
                "num_key_value_heads": 8, "head_dim": 128, "attn_dtype": "bfloat16",
                "kv_cache_dtype": "bfloat16", "window_size": 0,
                "latency": 1e-3 * batch * length,
            }
            for batch, length in product((1, 4), (64, 1024))
        ]  # fmt: skip
        pd.DataFrame(rows).to_parquet(tmp_path / f"{name}_attention_perf.parquet")
    return OperatorTable(tmp_path)


def dense_ms(tokens: int, sequences: int) -> float:
    per_layer = QKV * HIDDEN + HIDDEN * HIDDEN + 2 * FFN * HIDDEN + HIDDEN * FFN
    return 1e-12 * (LAYERS * tokens * per_layer + sequences * 128256 * HIDDEN)


def test_operators_add_up_and_shapes_between_rows_are_interpolated(
    operators: OperatorTable,
) -> None:
    expected_ms = dense_ms(2 * 128 + 2, 4) + LAYERS * (0.256 + 0.4)
    assert operators.seconds([(128, 0)] * 2, 2, 400) == pytest.approx(1e-3 * expected_ms)


def test_a_chunk_after_a_prefix_costs_its_share_of_the_triangle(operators: OperatorTable) -> None:
    # 400 after 600: 1 - 0.36 of attention over 1,000.
    expected_ms = dense_ms(400, 1) + LAYERS * 0.64
    assert operators.seconds([(400, 600)], 0, 0) == pytest.approx(1e-3 * expected_ms)


def test_operators_know_no_batch_beyond_their_rows(operators: OperatorTable) -> None:
    assert np.isnan(operators.seconds([(64, 0), (65, 0)], 0, 0))
    assert np.isnan(operators.seconds((), 5, 500))
    assert np.isnan(operators.seconds([(4_000, 0)], 0, 0))


def test_an_absent_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"dense\.csv"):
        KernelTable(tmp_path)
    with pytest.raises(WorkloadError, match=r"gemm_perf\.parquet"):
        OperatorTable(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    not (step_time.default_kernels() and step_time.default_operators()),
    reason="no measured GPU tables in ../shared/data",
)
def test_on_measured_gpu_tables_half_of_the_iterations_are_within_two_percent() -> None:
    plan = step_time.Plan(
        results=Path(),
        kernels=step_time.default_kernels(),
        operators=step_time.default_operators(),
    )
    for table in plan.tables():
        samples = random_samples(table, np.random.default_rng(1), 6_000, step_time.OUTER)
        overall = train(samples, seed=1).reports[-1]
        assert overall.p50_error <= 0.02, table.name
        assert overall.p95_error <= 0.09, table.name
        assert 0.935 <= overall.coverage <= 0.965, table.name
        beyond = step_time.extrapolation(table, seed=1)
        assert beyond["exceeded"] <= 0.05, table.name
        assert beyond["flagged"] == 1.0, table.name
