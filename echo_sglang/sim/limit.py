"""The most offline work that any scheduler could do beside the online traffic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from echo_sglang.domain.batch import BatchShape
from echo_sglang.sim.device import RooflineDevice
from echo_sglang.sim.workload import Request, Segment


def physical_limit_per_s(
    requests: Sequence[Request], device: RooflineDevice, window_s: float
) -> float | None:
    """Offline requests per second that the device could finish if nothing were ever lost.

    An upper bound, not reachable: every shared prefix is computed once, weights are read for
    free because some batch is always large, and iterations cost no overhead. What remains is
    arithmetic, and the reading of KV while decoding. Online work is taken off first. None
    without offline requests.
    """
    offline = [r for r in requests if r.is_offline]
    if not offline:
        return None
    online_s = least_seconds((r for r in requests if not r.is_offline), device)
    offline_s = least_seconds(offline, device)
    return len(offline) * max(1.0 - online_s / window_s, 0.0) / offline_s


def least_seconds(requests: Iterable[Request], device: RooflineDevice) -> float:
    """Device seconds for all `requests`, each prefix they share computed once."""
    seen: set[tuple[int, Segment]] = set()
    total_s = 0.0
    for request in requests:
        prefix, path = 0, 0
        for segment in request.prompt:
            key = (path, segment)
            if key not in seen:
                seen.add(key)
                total_s += device.least_seconds(BatchShape().with_chunk(segment.tokens, prefix))
            prefix += segment.tokens
            path = hash(key)
        total_s += device.least_seconds(_decode(request))
    return total_s


def _decode(request: Request) -> BatchShape:
    """All decode steps of one request: the prefill gives the first token."""
    steps = request.output_tokens - 1
    kv_tokens = steps * request.prompt_tokens + steps * (steps + 1) // 2
    return BatchShape(decode_rows=steps, decode_kv_tokens=kv_tokens)
