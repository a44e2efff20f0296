"""Times fitted offline: per regime a monotone curve sum and its local correction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from echo_sglang.domain.batch import BatchShape
from echo_sglang.estimate.curves import CurveSum, inputs
from echo_sglang.estimate.lattice import Lattice


@dataclass(frozen=True, slots=True)
class RegimeFit:
    """Curves and correction of one regime."""

    curves: CurveSum
    lattice: Lattice

    def seconds(self, shape: BatchShape) -> float:
        """Expected seconds of a batch; monotone in any chunk added to it."""
        fitted_s = self.curves.seconds(inputs(shape))
        rows, kv_tokens = shape.decode_rows, shape.decode_kv_tokens
        return fitted_s * math.exp(self.lattice.log_ratio(rows, kv_tokens, fitted_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedTimes:
    """The three regimes of one server. Immutable and shared by reference, it may be large."""

    extend: RegimeFit
    decode: RegimeFit
    mixed: RegimeFit

    def seconds(self, shape: BatchShape) -> float:
        """Expected seconds of a batch."""
        if not shape.extend_tokens:
            return self.decode.seconds(shape)
        return (self.mixed if shape.decode_rows else self.extend).seconds(shape)
