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
    tokens = shape.extend_tokens
    return (
        1.0,
        1.0 if tokens else 0.0,
        float(tokens),
        *(float(max(tokens - hinge, 0)) for hinge in TOKEN_HINGES),
        float(shape.extend_pairs),
        float(shape.extend_square),
        float(shape.decode_rows),
        float(max(shape.decode_rows - ROW_HINGE, 0)),
        float(shape.decode_kv_tokens),
        float(shape.extend_prefix_tokens),
        float(shape.decode_kv_tokens) if tokens else 0.0,
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
        for i, hinge in enumerate(TOKEN_HINGES):
            if tokens > hinge:
                seconds += w[3 + i] * (tokens - hinge)
    return seconds
