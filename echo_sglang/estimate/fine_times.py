"""Times of iterations with little or no prefill, to a fraction of a percent.

The step-time model has to explain iterations from one token to thousands; its errors of some
percent do not matter where a bound is asked for. What one offline row or a short chunk adds to a
decode step is a few percent itself. So this fit knows only iterations of at most `MAX_TOKENS`
prompt tokens, where it tells in small steps how many of them are free because the weights are
read anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

from echo_sglang.domain.batch import BatchShape
from echo_sglang.estimate.live_fit import LiveFit

MAX_TOKENS = 512
TOKEN_HINGES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 256)
"""Of all tokens of an iteration with prefill, those of decode rows too."""

ROW_HINGE = 8
NUM_FEATURES = 9 + len(TOKEN_HINGES)


@dataclass(frozen=True, slots=True)
class FineTimes:
    """A fit. weights_s: seconds per unit of each entry of `fine_features`."""

    weights_s: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.weights_s) == NUM_FEATURES, self.weights_s

    def knows(self, shape: BatchShape) -> bool:
        """True for a batch of the kind that was fitted."""
        return shape.extend_tokens <= MAX_TOKENS

    def predict(self, shape: BatchShape) -> float:
        """Expected seconds of one iteration."""
        w, rows, tokens = self.weights_s, shape.decode_rows, shape.extend_tokens
        seconds = w[0] + w[1] * rows + w[3] * shape.decode_kv_tokens
        if rows > ROW_HINGE:
            seconds += w[2] * (rows - ROW_HINGE)
        if tokens:
            seconds += w[4] + w[5] * shape.decode_kv_tokens + w[7] * shape.extend_prefix_tokens
            seconds += w[6] * (shape.extend_pairs + 0.5 * shape.extend_square)
            tokens += rows
            seconds += w[8] * tokens
            for i, hinge in enumerate(TOKEN_HINGES):
                if tokens <= hinge:
                    break
                seconds += w[9 + i] * (tokens - hinge)
        return seconds


def fine_features(shape: BatchShape) -> tuple[float, ...]:
    """The regressors of one batch, in a fixed order; all non-negative."""
    rows, tokens = shape.decode_rows, shape.extend_tokens
    kv_tokens = float(shape.decode_kv_tokens)
    return (
        1.0,
        float(rows),
        float(max(rows - ROW_HINGE, 0)),
        kv_tokens,
        1.0 if tokens else 0.0,
        kv_tokens if tokens else 0.0,
        shape.extend_pairs + 0.5 * shape.extend_square,
        float(shape.extend_prefix_tokens),
        float(tokens + rows) if tokens else 0.0,
        *(float(max(tokens + rows - hinge, 0)) if tokens else 0.0 for hinge in TOKEN_HINGES),
    )


class FineFitter:
    """Learns `FineTimes` from measured iterations.

    Refits every `refit_every` iterations on the last `window` of each regime; one counts half
    as much as another that is `half_life` younger.
    """

    def __init__(
        self,
        *,
        window: int = 1024,
        half_life: int = 256,
        refit_every: int = 16,
        min_samples: int = 64,
    ) -> None:
        self._live = LiveFit(
            columns=NUM_FEATURES, window=window, half_life=half_life, profiled=False
        )
        self._refit_every = refit_every
        self._min_samples = min_samples
        self._observed = 0
        self._times: FineTimes | None = None

    @property
    def times(self) -> FineTimes | None:
        """What was learned; None until enough was measured."""
        return self._times

    def observe(self, shape: BatchShape, seconds: float) -> None:
        """Learn from one finished iteration, if it is of the kind."""
        if shape.extend_tokens > MAX_TOKENS or not seconds > 0.0:
            return
        self._live.add(shape.regime, fine_features(shape), seconds)
        self._observed += 1
        if self._observed < self._min_samples or self._observed % self._refit_every:
            return
        weights = self._live.weights(1.0)
        if weights is not None:
            self._times = FineTimes(weights)
