"""An invented server with the traits that make step time hard: tiles, overlap, long prefixes."""

from __future__ import annotations

import functools
import math

import numpy as np

from echo_sglang.domain.batch import BatchShape, StepSample
from echo_sglang.estimate.training import Training, train


def machine_seconds(shape: BatchShape) -> float:
    """5 ms, or 1 ms a started tile of 64 tokens if that is more, plus attention.

    Prefill attention costs 2 ns a pair, but reads its prefix at 1 us a token however few
    they are; decode reads KV at 0.2 us a token, a third slower beside prefill.
    """
    tokens = shape.extend_tokens + shape.decode_rows
    dense_s = max(0.005, 0.001 * math.ceil(tokens / 64))
    pairs = shape.extend_pairs + 0.5 * shape.extend_square
    prefill_s = max(2e-9 * pairs, 1e-6 * shape.extend_prefix_tokens)
    beside = 4 / 3 if shape.extend_tokens else 1.0
    return dense_s + prefill_s + beside * 2e-7 * shape.decode_kv_tokens


def machine_shape(rng: np.random.Generator, *, largest: int = 2048) -> BatchShape:
    """A third of the batches of each regime, every quantity log-uniform."""
    kind = rng.integers(3)
    rows = 0 if kind == 0 else _log_uniform(rng, 1, 64)
    shape = BatchShape(decode_rows=rows, decode_kv_tokens=rows * _log_uniform(rng, 64, 4096))
    if kind != 1:
        prefix = 0 if rng.random() < 0.4 else _log_uniform(rng, 32, 4096)
        shape = shape.with_chunk(_log_uniform(rng, 16, largest), prefix)
    return shape


def machine_samples(
    count: int, *, seed: int, noise: float = 0.02, largest: int = 2048
) -> list[StepSample]:
    """`count` measured iterations with log-normal noise."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        shape = machine_shape(rng, largest=largest)
        seconds = machine_seconds(shape) * math.exp(noise * rng.standard_normal())
        samples.append(StepSample(shape, seconds))
    return samples


@functools.cache
def machine_training() -> Training:
    """The machine, profiled once for all tests."""
    return train(machine_samples(2_000, seed=5), seed=5)


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    return int(math.exp(rng.uniform(math.log(low), math.log(high + 1))))
