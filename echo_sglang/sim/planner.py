"""Answers a deployer's questions by emulation: does it hold, what can be harvested, at what cost.

Every answer is a set of runs; `cached` keeps each on disk by what determines it, so an
interrupted plan goes on where it stopped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from echo_sglang.config import EchoConfig
from echo_sglang.domain.batch import BatchShape
from echo_sglang.errors import ConfigError
from echo_sglang.sim.catalog import device_from
from echo_sglang.sim.device import RooflineDevice
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.recipe_names import OnlineSource
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.spec import Recipe, RunSpec

Execute = Callable[..., Iterable[dict[str, Any]]]
Progress = Callable[[str], None]
MAX_REPLICAS = 1024
SMALLEST_PROMPT_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be planned.

    starts_s: where in the online traffic the windows begin, each `window_s` long. attained:
    share of online requests that must meet `slo`. replicas: fixed, or None for the fewest that
    hold. margins: shares of the SLO that Echo may use, for the trade-off curve. batch_lines,
    batch_window_s: does a batch of so many lines like `offline` finish in time.
    """

    device: str
    online: OnlineSource
    offline: Recipe
    slo: Slo
    starts_s: tuple[float, ...] = (0.0,)
    window_s: float = 300.0
    attained: float = 0.99
    replicas: int | None = None
    margins: tuple[float, ...] = (0.5, 0.65, 0.8, 0.95)
    batch_lines: int | None = None
    batch_window_s: float = 86_400.0
    kv_tokens: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        if not self.starts_s or self.window_s <= 0 or not 0.0 < self.attained <= 1.0:
            raise ConfigError(
                "a plan needs at least one window of more than 0 s and a share of requests that "
                f"attain their SLO in (0, 1]; got {len(self.starts_s)} of {self.window_s:g} s "
                f"and {self.attained:g}"
            )
        if self.replicas is not None and self.replicas < 1:
            raise ConfigError(f"replicas {self.replicas}: one or more")
        check_possible(self.slo, self.device)

    @property
    def pool_tokens(self) -> int:
        """KV tokens of one replica: given, or what fits beside the weights."""
        if self.kv_tokens is not None:
            return self.kv_tokens
        device = device_from(self.device)
        if isinstance(device, RooflineDevice):
            return device.kv_pool_tokens
        raise ConfigError(f"{self.device} says nothing of memory; say --kv-tokens")

    def spec(self, start_s: float, replicas: int, margin: float | None) -> RunSpec:
        """One replica in one window; `margin` None leaves the offline work out."""
        online = self.online.recipe(start_s, self.window_s, 1.0 / replicas)
        echo = EchoConfig(slo_ttft_ms=self.slo.ttft_s * 1e3, slo_tpot_ms=self.slo.tpot_s * 1e3)
        if margin is not None:
            echo = replace(echo, slo_margin=margin)
        return RunSpec(
            device=self.device,
            setup=ServerSetup(echo=echo, kv_tokens=self.pool_tokens, mixed=True),
            recipes=(online,) if margin is None else (online, self.offline),
            seed=self.seed,
            window_s=self.window_s,
            slo=self.slo,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowAnswer:
    """One window: online alone against online beside offline work, on `replicas` servers.

    *_alone_*: without offline work. harvested_*: of all replicas together.
    """

    start_s: float
    replicas: int
    margin: float
    online_requests: int
    attained_alone: float
    attained: float
    ttft_p99_alone_s: float
    ttft_p99_s: float
    tpot_p99_alone_s: float
    tpot_p99_s: float
    harvested_per_s: float
    harvested_tokens_per_s: float
    hit_rate: float | None
    share_of_limit: float | None
    pool_dry: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The plan. batch_s: seconds for the whole batch, None if it was not asked for."""

    replicas: int
    holds: bool
    windows: tuple[WindowAnswer, ...]
    trade_off: tuple[WindowAnswer, ...]
    batch_s: float | None = None
    batch_fits: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; a batch that never ends has no `batch_s`."""
        values = asdict(self)
        if self.batch_s is not None and math.isinf(self.batch_s):
            values["batch_s"] = None
        return values


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


def plan(question: Question, execute: Execute, progress: Progress = print) -> Answer:
    """Answer `question`. execute: see `cached`; progress is told in words what goes on."""
    busiest_s = _busiest(question)
    replicas = question.replicas or _fewest_replicas(question, busiest_s, execute, progress)
    margin = EchoConfig().slo_margin
    pairs = [(start_s, margin) for start_s in question.starts_s]
    pairs += [(busiest_s, m) for m in question.margins if m != margin]
    progress(f"{len(pairs)} windows on {replicas} replica(s), alone and with offline work")
    answers = _windows(question, pairs, replicas, execute)
    windows = tuple(answers[: len(question.starts_s)])
    trade_off = (*answers[len(question.starts_s) :], windows[question.starts_s.index(busiest_s)])
    batch_s = _batch_seconds(question, windows)
    return Answer(
        replicas=replicas,
        holds=all(w.attained >= question.attained for w in windows),
        windows=windows,
        trade_off=tuple(sorted(trade_off, key=lambda w: w.margin)),
        batch_s=batch_s,
        batch_fits=None if batch_s is None else batch_s <= question.batch_window_s,
    )


def cached(folder: Path, execute: Execute) -> Execute:
    """`execute` that keeps each result in `folder` and runs only what is not there."""

    def run(specs: Sequence[RunSpec], **options: Any) -> Iterable[dict[str, Any]]:
        missing = list({s.digest: s for s in specs if not _file(folder, s).is_file()}.values())
        for spec, result in zip(missing, execute(missing, **options), strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            partial = _file(folder, spec).with_suffix(".partial")
            partial.write_text(json.dumps(result), encoding="utf-8")
            partial.replace(_file(folder, spec))
        return [json.loads(_file(folder, spec).read_text("utf-8")) for spec in specs]

    return run


def _file(folder: Path, spec: RunSpec) -> Path:
    return folder / f"{spec.digest}.json"


def _busiest(question: Question) -> float:
    """The start of the window in which most tokens are asked for."""

    def tokens(start_s: float) -> int:
        recipe = question.online.recipe(start_s, question.window_s, 1.0)
        return sum(r.prompt_tokens + r.output_tokens for r in recipe.requests(question.seed))

    return max(question.starts_s, key=tokens)


def _fewest_replicas(
    question: Question, start_s: float, execute: Execute, progress: Progress
) -> int:
    """Fewest servers on which the busiest window's online traffic, alone, attains enough."""

    def holds(replicas: int) -> bool:
        (result,) = execute([question.spec(start_s, replicas, None)])
        attained = result["summary"]["attainment"]
        progress(f"{replicas} replica(s): {100 * attained:.1f} % of online requests attain")
        return bool(attained >= question.attained)

    high = 1
    while not holds(high):
        high *= 2
        if high > MAX_REPLICAS:
            raise ConfigError(
                f"not even {MAX_REPLICAS} replicas hold the SLO: single requests are too long "
                "for it; relax it or take faster hardware"
            )
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _windows(
    question: Question, pairs: Sequence[tuple[float, float]], replicas: int, execute: Execute
) -> list[WindowAnswer]:
    specs = [question.spec(start_s, replicas, None) for start_s, _ in pairs]
    specs += [question.spec(start_s, replicas, margin) for start_s, margin in pairs]
    summaries = [result["summary"] for result in execute(specs)]
    alone, beside = summaries[: len(pairs)], summaries[len(pairs) :]
    return [
        WindowAnswer(
            start_s=start_s,
            replicas=replicas,
            margin=margin,
            online_requests=a["online_requests"],
            attained_alone=a["attainment"],
            attained=b["attainment"],
            ttft_p99_alone_s=a["ttft_p99_s"],
            ttft_p99_s=b["ttft_p99_s"],
            tpot_p99_alone_s=a["tpot_p99_s"],
            tpot_p99_s=b["tpot_p99_s"],
            harvested_per_s=replicas * b["offline_per_s"],
            harvested_tokens_per_s=replicas * b["offline_tokens_per_s"],
            hit_rate=b["offline_hit_rate"],
            share_of_limit=b["share_of_limit"],
            pool_dry=b["pool_dry"],
        )
        for (start_s, margin), a, b in zip(pairs, alone, beside, strict=True)
    ]


def _batch_seconds(question: Question, windows: Sequence[WindowAnswer]) -> float | None:
    """At the mean rate over the windows; infinite if nothing can be harvested."""
    if question.batch_lines is None:
        return None
    rate = sum(w.harvested_per_s for w in windows) / len(windows)
    return question.batch_lines / rate if rate else math.inf
