"""What a deployer asks the planner, checked whole before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from echo_sglang.config import EchoConfig
from echo_sglang.domain.batch import BatchShape
from echo_sglang.errors import ConfigError, WorkloadError
from echo_sglang.sim.catalog import ProfiledDevice, device_from
from echo_sglang.sim.device import RooflineDevice
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.recipe_names import OnlineSource
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.spec import Recipe, RunSpec
from echo_sglang.sim.workload import Request, merge

HOUR_S = 3600.0
SMALLEST_PROMPT_TOKENS = 64
MARGIN = EchoConfig().slo_margin
"""Share of the SLO that Echo plans with if nobody says otherwise."""

REFUSED_TOKENS = 8
"""SGLang refuses a request that comes this near to the context or to the whole pool."""

MAX_WINDOWS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be planned.

    starts_s: where in the online traffic the windows begin, each `window_s` long. length_s: of
    all the online traffic, None if it has no end. online_share: of that traffic, to be served.
    attained: share of online requests that must meet `slo`. replicas: fixed, or None for the
    fewest that hold. margins: shares of the SLO that Echo may use, for the trade-off curve.
    batch_lines, batch_window_s: does a batch of so many lines like `offline` finish in time.
    """

    device: str
    online: OnlineSource
    offline: Recipe
    slo: Slo
    starts_s: tuple[float, ...] = (0.0,)
    window_s: float = 300.0
    length_s: float | None = None
    online_share: float = 1.0
    attained: float = 0.99
    replicas: int | None = None
    margins: tuple[float, ...] = (0.5, 0.65, 0.8, 0.95)
    batch_lines: int | None = None
    batch_window_s: float = 24 * HOUR_S
    kv_tokens: int | None = None
    context_tokens: int = 131_072
    seed: int = 1

    def __post_init__(self) -> None:
        starts_s = self.starts_s
        _require(
            0 < len(starts_s) <= MAX_WINDOWS,
            f"{len(starts_s)} windows",
            f"1 to {MAX_WINDOWS}; say --starts-s or a smaller --per-hour",
        )
        _require(all(_finite(s, 0.0) for s in starts_s), f"starts {starts_s}", "0 s or later")
        _require(_positive(self.window_s), f"windows of {self.window_s} s", "more than 0 s")
        _require(0 < self.online_share <= 1, f"online share {self.online_share}", "above 0 to 1")
        _require(0 < self.attained <= 1, f"attained {self.attained}", "above 0 to 1")
        _require(
            bool(self.margins) and all(0 < m <= 1 for m in self.margins),
            f"margins {self.margins}",
            "one or more, above 0 to 1",
        )
        _require(
            self.replicas is None or self.replicas >= 1, f"replicas {self.replicas}", "1 or more"
        )
        _require(
            self.batch_lines is None or self.batch_lines >= 1,
            f"a batch of {self.batch_lines} lines",
            "1 or more",
        )
        _require(
            _positive(self.batch_window_s), f"batch window {self.batch_window_s} s", "above 0 s"
        )
        _require(
            self.kv_tokens is None or self.kv_tokens >= 1,
            f"{self.kv_tokens} KV tokens",
            "1 or more",
        )
        _require(self.context_tokens >= 1, f"context {self.context_tokens} tokens", "1 or more")
        check_possible(self.slo, self.device)
        _ = self.pool_tokens

    @property
    def pool_tokens(self) -> int:
        """KV tokens of one replica: given, or what fits beside the weights."""
        if self.kv_tokens is not None:
            return self.kv_tokens
        device = device_from(self.device)
        described = device.described if isinstance(device, ProfiledDevice) else device
        if described is None:
            raise ConfigError(f"{self.device} says nothing of memory; say --kv-tokens")
        return described.kv_pool_tokens

    def online_requests(self, start_s: float, replicas: int = 1) -> list[Request]:
        """What one of `replicas` servers is asked online in the window that starts there."""
        return self._online(start_s, replicas).requests(self.seed)

    def spec(self, start_s: float, replicas: int, margin: float | None) -> RunSpec:
        """One replica in one window; `margin` None leaves the offline work out."""
        online = self._online(start_s, replicas)
        echo = EchoConfig(slo_ttft_ms=self.slo.ttft_s * 1e3, slo_tpot_ms=self.slo.tpot_s * 1e3)
        if margin is not None:
            echo = replace(echo, slo_margin=margin)
        return RunSpec(
            device=self.device,
            setup=ServerSetup(
                echo=echo,
                kv_tokens=self.pool_tokens,
                context_tokens=self.context_tokens,
                mixed=True,
            ),
            recipes=(online,) if margin is None else (online, self.offline),
            seed=self.seed,
            window_s=self.window_s,
            slo=self.slo,
        )

    def _online(self, start_s: float, replicas: int) -> Recipe:
        return self.online.recipe(start_s, self.window_s, self.online_share / replicas)


def sample_starts(length_s: float | None, window_s: float, per_hour: int) -> tuple[float, ...]:
    """Where `per_hour` windows begin in every hour of a trace, evenly apart.

    One window at 0 if the trace has no end (it is the same everywhere) or is no longer.
    """
    if length_s is None or length_s <= window_s:
        return (0.0,)
    step_s = HOUR_S / per_hour
    middles_s = [(i + 0.5) * step_s for i in range(math.ceil(length_s / step_s))]
    latest_s = length_s - window_s
    starts_s = (min(max(middle - window_s / 2, 0.0), latest_s) for middle in middles_s)
    return tuple(dict.fromkeys(starts_s))


def check_workload(question: Question) -> None:
    """Draw all that will be asked and raise WorkloadError for what cannot be planned."""
    offline = question.offline.requests(question.seed)
    if not offline:
        raise WorkloadError("the offline work is empty: there is nothing to harvest with")
    _check_fits(merge(offline).requests, question)
    total = 0
    for start_s in question.starts_s:
        online = question.online_requests(start_s)
        if online:
            _check_fits(merge(online).requests, question)
        total += len(online)
    if not total:
        length_s = question.length_s
        end = "" if length_s is None else f"; the traffic ends at {length_s:g} s"
        raise WorkloadError(
            f"no online request arrives in any of {len(question.starts_s)} window(s) of "
            f"{question.window_s:g} s, the first from second {question.starts_s[0]:g} on{end}"
        )


def check_possible(slo: Slo, device: str) -> None:
    """Raise ConfigError if an idle server of this kind already misses `slo`."""
    single = device_from(device)
    step_s = single.seconds(BatchShape(decode_rows=1, decode_kv_tokens=SMALLEST_PROMPT_TOKENS))
    prefill_s = single.seconds(BatchShape().with_chunk(SMALLEST_PROMPT_TOKENS, 0))
    for name, wanted_s, least_s in (
        ("TPOT", slo.tpot_s, step_s),
        ("TTFT", slo.ttft_s, prefill_s),
    ):
        if not math.isfinite(wanted_s) or wanted_s < least_s:
            raise ConfigError(
                f"an SLO of {name} {1e3 * wanted_s:g} ms cannot be held: {device} takes "
                f"{1e3 * least_s:.1f} ms for a single short request; ask for more, or plan with "
                "faster hardware"
            )


def roofline_of(device: str) -> RooflineDevice | None:
    """The described device, if its times are computed and not profiled."""
    found = device_from(device)
    return found if isinstance(found, RooflineDevice) else None


def _check_fits(requests: tuple[Request, ...], question: Question) -> None:
    room = min(question.context_tokens, question.pool_tokens) - REFUSED_TOKENS
    sizes = [r.prompt_tokens + r.allowed_tokens for r in requests]
    too_long = sum(size > room for size in sizes)
    if too_long:
        raise WorkloadError(
            f"{too_long} of {len(sizes)} requests are longer than a server takes: up to "
            f"{max(sizes)} tokens with their answers, {room} fit (KV {question.pool_tokens}, "
            f"context {question.context_tokens}); leave them out or plan a larger server"
        )


def _require(holds: bool, given: str, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{given}: allowed is {allowed}")


def _finite(value: float, least: float) -> bool:
    return math.isfinite(value) and value >= least


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
