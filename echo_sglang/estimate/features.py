"""The regressors of the live fit: few, so that some dozen iterations determine them."""

from __future__ import annotations

from echo_sglang.domain.batch import BatchShape

TOKEN_HINGES = (128, 512, 1024)
ROW_HINGE = 8
NUM_FEATURES = 13


def features(shape: BatchShape) -> tuple[float, ...]:
    """The regressors of one batch, in a fixed order; all non-negative.

    The last but one is cached prefix read by prefill, the last is decode KV read beside
    prefill, which a mixed attention kernel does less well than a decode kernel.
    """
    tokens, pairs, square, rows, kv_tokens, prefix_tokens, _ = shape
    first, second, third = TOKEN_HINGES
    return (
        1.0,
        1.0 if tokens else 0.0,
        float(tokens),
        float(tokens - first) if tokens > first else 0.0,
        float(tokens - second) if tokens > second else 0.0,
        float(tokens - third) if tokens > third else 0.0,
        float(pairs),
        float(square),
        float(rows),
        float(rows - ROW_HINGE) if rows > ROW_HINGE else 0.0,
        float(kv_tokens),
        float(prefix_tokens),
        float(kv_tokens) if tokens else 0.0,
    )


def linear_seconds(w: tuple[float, ...], shape: BatchShape) -> float:
    """`features(shape)` times the weights `w`, without building the vector."""
    tokens, pairs, square, rows, kv_tokens, prefix_tokens, _ = shape
    seconds = w[0] + w[8] * rows + w[10] * kv_tokens
    if rows > ROW_HINGE:
        seconds += w[9] * (rows - ROW_HINGE)
    if tokens:
        seconds += w[1] + w[2] * tokens + w[6] * pairs
        seconds += w[7] * square + w[11] * prefix_tokens
        seconds += w[12] * kv_tokens
        first, second, third = TOKEN_HINGES
        if tokens > first:
            seconds += w[3] * (tokens - first)
            if tokens > second:
                seconds += w[4] * (tokens - second)
                if tokens > third:
                    seconds += w[5] * (tokens - third)
    return seconds
