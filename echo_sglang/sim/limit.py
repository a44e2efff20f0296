"""The most offline work that any scheduler could do beside the online traffic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from echo_sglang.domain.batch import BatchShape
from echo_sglang.sim.device import RooflineDevice
from echo_sglang.sim.workload import Request, Segment


@dataclass(frozen=True, slots=True)
class PhysicalLimit:
    """What the device could do for offline work if nothing were ever lost.

    An upper bound, not reachable: every shared prefix is computed once, weights are read for
    free because some batch is always large, and iterations cost no overhead. What remains is
    arithmetic, and the reading of KV while decoding. Online work is taken off first.

    seconds: by request id, what each offline request takes at least; what several share is
    divided among all of the pool that share it. share_left: of the device's time, by online work.
    """

    seconds: Mapping[str, float]
    share_left: float

    @classmethod
    def of(
        cls, requests: Sequence[Request], device: RooflineDevice, window_s: float
    ) -> PhysicalLimit | None:
        """Of a workload of `window_s`; None without offline requests."""
        offline = [r for r in requests if r.is_offline]
        if not offline:
            return None
        online_s = least_seconds((r for r in requests if not r.is_offline), device)
        return cls(_divided_seconds(offline, device), max(1.0 - online_s / window_s, 0.0))

    @property
    def per_s(self) -> float:
        """Offline requests per second, of each kind as many as the pool has."""
        return len(self.seconds) * self.share_left / sum(self.seconds.values())

    def share(self, rids: Iterable[str], seconds: float) -> float:
        """How much of the time that online work leaves of `seconds` these offline requests need.

        Requests differ, and who runs short ones first finishes more of them; their least time
        is what can be compared.
        """
        left_s = self.share_left * seconds
        return sum(self.seconds[rid] for rid in rids) / left_s if left_s else 0.0


def _divided_seconds(requests: Sequence[Request], device: RooflineDevice) -> dict[str, float]:
    """By request id: least seconds, those of a prefix divided among the requests that share it."""
    users = Counter(key for request in requests for key, *_ in _parts(request))
    return {
        request.rid: device.least_seconds(_decode(request))
        + sum(
            device.least_seconds(BatchShape().with_chunk(tokens, prefix)) / users[key]
            for key, tokens, prefix in _parts(request)
        )
        for request in requests
    }


def _parts(request: Request) -> Iterator[tuple[tuple[int, Segment], int, int]]:
    """(path and segment, its tokens, tokens before it) of a prompt, from its beginning."""
    prefix, path = 0, 0
    for segment in request.prompt:
        key = (path, segment)
        yield key, segment.tokens, prefix
        prefix += segment.tokens
        path = hash(key)


def least_seconds(requests: Iterable[Request], device: RooflineDevice) -> float:
    """Device seconds for all `requests`, each prefix they share computed once."""
    seen: set[tuple[int, Segment]] = set()
    total_s = 0.0
    for request in requests:
        for key, tokens, prefix in _parts(request):
            if key not in seen:
                seen.add(key)
                total_s += device.least_seconds(BatchShape().with_chunk(tokens, prefix))
        total_s += device.least_seconds(_decode(request))
    return total_s


def _decode(request: Request) -> BatchShape:
    """All decode steps of one request: the prefill gives the first token."""
    steps = request.output_tokens - 1
    kv_tokens = steps * request.prompt_tokens + steps * (steps + 1) // 2
    return BatchShape(decode_rows=steps, decode_kv_tokens=kv_tokens)
