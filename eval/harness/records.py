"""What the client saw of each request, and what a run of them adds up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Service level of an online request: first token, then mean time per further token."""

    ttft_s: float = 2.0
    tpot_s: float = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineRecord:
    """One streamed request, times in seconds since the start of the window.

    due_s: when the workload wanted it sent; latency counts from here, so a client that is late
    is not flattered. first_s, last_s: None until the first and the last token were received.
    stopped_s: when the client stopped watching (the end of the request, or of the run).
    error: why there is no answer, None if there is one.
    """

    index: int
    due_s: float
    sent_s: float
    first_s: float | None
    last_s: float | None
    stopped_s: float
    max_gap_s: float
    prompt_tokens: int
    output_tokens: int
    service_tier: str | None
    error: str | None

    @property
    def finished(self) -> bool:
        """Whether the whole answer arrived."""
        return self.error is None and self.first_s is not None and self.last_s is not None

    @property
    def ttft_s(self) -> float:
        """Seconds to the first token; for a request without one, the seconds it has waited."""
        return (self.stopped_s if self.first_s is None else self.first_s) - self.due_s

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per token after the first; None for an unfinished request."""
        if self.first_s is None or self.last_s is None or self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.output_tokens - 1)

    def attains(self, slo: Slo) -> bool:
        """Whether both bounds hold. An error or an unfinished answer is a miss."""
        if not self.finished or self.ttft_s > slo.ttft_s:
            return False
        return self.tpot_s is None or self.tpot_s <= slo.tpot_s


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineRecord:
    """One finished or failed offline request. done_s counts from the start of the window."""

    index: int
    document: int
    done_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    service_tier: str | None
    text: str
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One play of a workload. Offline requests still unanswered at the end have no record."""

    workload_sha256: str
    window_s: float
    num_offline_submitted: int
    online: tuple[OnlineRecord, ...]
    offline: tuple[OfflineRecord, ...]

    @property
    def refused(self) -> str | None:
        """The first error, if every online request met one; being late is no error."""
        errors = [r.error for r in self.online]
        if not errors or any(error in (None, UNFINISHED) for error in errors):
            return None
        return errors[0]

    def to_json(self) -> dict[str, Any]:
        """All records as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunRecord:
        """Read back what `to_json` wrote."""
        return cls(
            workload_sha256=data["workload_sha256"],
            window_s=data["window_s"],
            num_offline_submitted=data["num_offline_submitted"],
            online=tuple(OnlineRecord(**row) for row in data["online"]),
            offline=tuple(OfflineRecord(**row) for row in data["offline"]),
        )


def summarise(run: RunRecord, slo: Slo) -> dict[str, float | int | bool | None]:
    """The row of a run in the table; a value that does not exist is None.

    Offline figures count what was answered within the window. If the pool ran dry before the
    end, rates are per second until then and `pool_dry` says so. The KV hit rate is the share
    of those prompts' tokens that the server took from its cache; best_kv_hit_rate is what no
    cache and no order can beat, each document computed once.
    """
    done = [r for r in run.offline if r.error is None and r.done_s <= run.window_s]
    pool_dry = bool(run.num_offline_submitted) and len(done) == run.num_offline_submitted
    seconds = max(r.done_s for r in done) if pool_dry else run.window_s
    prompt_tokens = sum(r.prompt_tokens for r in done)
    output_tokens = sum(r.output_tokens for r in done)
    cached_tokens = sum(r.cached_tokens for r in done)
    attained = sum(r.attains(slo) for r in run.online)
    tpots_s = [r.tpot_s for r in run.online if r.tpot_s is not None]
    ttfts_s = [r.ttft_s for r in run.online]
    return {
        "online_requests": len(run.online),
        "online_finished": sum(r.finished for r in run.online),
        "online_errors": sum(r.error not in (None, UNFINISHED) for r in run.online),
        "attainment": attained / len(run.online) if run.online else None,
        "ttft_p50_s": _percentile(ttfts_s, 50),
        "ttft_p99_s": _percentile(ttfts_s, 99),
        "tpot_p50_s": _percentile(tpots_s, 50),
        "tpot_p99_s": _percentile(tpots_s, 99),
        "max_gap_p99_s": _percentile([r.max_gap_s for r in run.online], 99),
        "send_delay_max_s": max((r.sent_s - r.due_s for r in run.online), default=None),
        "offline_submitted": run.num_offline_submitted,
        "offline_done": len(done),
        "offline_errors": sum(r.error is not None for r in run.offline),
        "offline_per_s": len(done) / seconds if run.num_offline_submitted else None,
        "offline_tokens_per_s": (
            (prompt_tokens + output_tokens) / seconds if run.num_offline_submitted else None
        ),
        "offline_output_tokens": output_tokens,
        "kv_hit_rate": cached_tokens / prompt_tokens if prompt_tokens else None,
        "best_kv_hit_rate": _best_hit_rate(done),
        "pool_dry": pool_dry,
    }


def _best_hit_rate(done: Sequence[OfflineRecord]) -> float | None:
    """All but the first request of a document may find it cached, and at most all but the last
    token of its shortest prompt is shared: rather too high than too low."""
    prompts: dict[int, list[int]] = {}
    for record in done:
        prompts.setdefault(record.document, []).append(record.prompt_tokens)
    total = sum(map(sum, prompts.values()))
    shared = sum((len(tokens) - 1) * (min(tokens) - 1) for tokens in prompts.values())
    return shared / total if total else None


def _percentile(values: Sequence[float], q: float) -> float | None:
    return float(np.percentile(values, q)) if values else None
