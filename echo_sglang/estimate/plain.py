"""Step-time models as plain JSON values and back, exactly. Reading checks what it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from echo_sglang.estimate.curves import NUM_INPUTS, Curve, CurveSum
from echo_sglang.estimate.fitted import FittedTimes, RegimeFit
from echo_sglang.estimate.hull import Extent, Hull
from echo_sglang.estimate.lattice import MAX_FALL, MAX_LOG_RATIO, Lattice
from echo_sglang.estimate.step_time import StepTimeModel

Plain = dict[str, Any]

_REGIMES = ("extend", "decode", "mixed")


def model_to_plain(model: StepTimeModel) -> Plain:
    """Everything but `fitted`, which is large and shared by many models."""
    hull = model.hull
    return {
        "weights_s": list(model.weights_s),
        "fitted_weight": model.fitted_weight,
        "extend_log_factor": model.extend_log_factor,
        "decode_log_factor": model.decode_log_factor,
        "mixed_log_factor": model.mixed_log_factor,
        "largest_extend_tokens": model.largest_extend_tokens,
        "samples": model.samples,
        "hull": None if hull is None else _hull_to_plain(hull),
    }


def model_from_plain(values: Mapping[str, Any], fitted: FittedTimes | None) -> StepTimeModel:
    """The model that `model_to_plain` wrote. Raises ValueError, KeyError or TypeError."""
    hull, mixed = values["hull"], values["mixed_log_factor"]
    return StepTimeModel(
        weights_s=tuple(_at_least_zero("weights_s", w) for w in values["weights_s"]),
        fitted=fitted,
        fitted_weight=_at_least_zero("fitted_weight", values["fitted_weight"]),
        extend_log_factor=_at_least_zero("extend_log_factor", values["extend_log_factor"]),
        decode_log_factor=_at_least_zero("decode_log_factor", values["decode_log_factor"]),
        mixed_log_factor=None if mixed is None else _at_least_zero("mixed_log_factor", mixed),
        largest_extend_tokens=int(_at_least_zero("tokens", values["largest_extend_tokens"])),
        samples=int(_at_least_zero("samples", values["samples"])),
        hull=None if hull is None else _hull_from_plain(hull),
    )


def fitted_to_plain(fitted: FittedTimes) -> Plain:
    """Curves and correction of each regime."""
    return {name: _regime_to_plain(getattr(fitted, name)) for name in _REGIMES}


def fitted_from_plain(values: Mapping[str, Any]) -> FittedTimes:
    """What `fitted_to_plain` wrote. Raises ValueError, KeyError or TypeError."""
    return FittedTimes(**{name: _regime_from_plain(name, values[name]) for name in _REGIMES})


def _regime_to_plain(fit: RegimeFit) -> Plain:
    return {
        "constant_s": fit.curves.constant_s,
        "curves": [
            {
                "knots": list(curve.knots),
                "offsets_s": list(curve.offsets_s),
                "slopes_s": list(curve.slopes_s),
            }
            for curve in fit.curves.curves
        ],
        "lattice": [[*node, value] for node, value in fit.lattice.nodes.items()],
    }


def _regime_from_plain(name: str, values: Mapping[str, Any]) -> RegimeFit:
    curves = tuple(_curve(f"{name} curve {i}", c) for i, c in enumerate(values["curves"]))
    if len(curves) != NUM_INPUTS:
        raise ValueError(f"{name} has {len(curves)} curves, expected {NUM_INPUTS}")
    constant_s = _at_least_zero(f"{name} constant_s", values["constant_s"])
    return RegimeFit(CurveSum(constant_s, curves), _lattice(name, values["lattice"]))


def _curve(name: str, values: Mapping[str, Any]) -> Curve:
    knots = tuple(_at_least_zero(f"{name} knots", x) for x in values["knots"])
    slopes = tuple(_at_least_zero(f"{name} slopes_s", x) for x in values["slopes_s"])
    offsets = tuple(_finite(f"{name} offsets_s", x) for x in values["offsets_s"])
    if not len(slopes) == len(offsets) == len(knots) + 1:
        raise ValueError(f"{name} has {len(knots)} knots for {len(slopes)} segments")
    if any(a >= b for a, b in pairwise(knots)):
        raise ValueError(f"{name} has knots that do not grow")
    for i, knot in enumerate(knots):
        before = offsets[i] + slopes[i] * knot
        after = offsets[i + 1] + slopes[i + 1] * knot
        if not math.isclose(before, after, rel_tol=1e-6, abs_tol=1e-9):
            raise ValueError(f"{name} jumps at knot {knot}")
    return Curve(knots, offsets, slopes)


def _lattice(name: str, rows: list[list[Any]]) -> Lattice:
    nodes = {(int(i), int(j), int(k)): _finite(f"{name} lattice", v) for i, j, k, v in rows}
    allowed = 1e-9
    for (i, j, k), value in nodes.items():
        falls = value - nodes.get((i, j, k + 1), 0.0) > MAX_FALL + allowed
        falls |= nodes.get((i, j, k - 1), 0.0) - value > MAX_FALL + allowed
        if falls or abs(value) > MAX_LOG_RATIO + allowed:
            raise ValueError(f"{name} lattice is out of bounds at node {i}, {j}, {k}: {value}")
    return Lattice(nodes)


def _hull_to_plain(hull: Hull) -> Plain:
    extents = {name: _extent_to_plain(getattr(hull, name)) for name in _REGIMES}
    return {"reach": hull.reach, "shared": hull.shared, **extents}


def _hull_from_plain(values: Mapping[str, Any]) -> Hull:
    reach = _finite("hull reach", values["reach"])
    if reach < 1.0:
        raise ValueError(f"hull reach {reach}, expected at least 1")
    extents = {name: _extent(f"hull {name}", values[name]) for name in _REGIMES}
    return Hull(reach=reach, shared=bool(values["shared"]), **extents)


def _extent_to_plain(extent: Extent) -> list[float | None]:
    """Without a bound is null: JSON knows no infinity."""
    return [None if math.isinf(value) else value for value in extent]


def _extent(name: str, values: list[Any]) -> Extent:
    a, b, c, d, e, f, g = (math.inf if v is None else _at_least_zero(name, v) for v in values)
    return a, b, c, d, e, f, g


def _at_least_zero(name: str, value: Any) -> float:
    number = _finite(name, value)
    if number < 0.0:
        raise ValueError(f"{name} has a negative value: {number}")
    return number


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} has {value!r} where a number is expected")
    if not math.isfinite(value):
        raise ValueError(f"{name} has a value that is not finite: {value}")
    return value
