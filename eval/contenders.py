"""The servers that the foundation experiment compares, and the flags each is started with."""

from __future__ import annotations

from dataclasses import dataclass

from eval.harness.client import ECHO, PLAIN, PRIORITY, Dialect
from eval.harness.records import Slo

SLO = Slo(ttft_s=2.0, tpot_s=0.3)
KV_TOKENS = 10_000
SEARCH_CHUNK_TOKENS = (64, 96, 128, 256)
SEARCH_MAX_RUNNING = (8, 16)
ONLINE_ALONE = "online-alone"
STOCK_FCFS = "stock-fcfs"
STOCK_PRIORITY = "stock-priority"
STOCK_TUNED = "stock-tuned"
ECHO_CONFIG = "echo"
CONFIGS = (ONLINE_ALONE, STOCK_FCFS, STOCK_PRIORITY, STOCK_TUNED, ECHO_CONFIG)
STOCK_CONFIGS = (STOCK_FCFS, STOCK_PRIORITY, STOCK_TUNED)
_COMMON = (
    *("--max-total-tokens", str(KV_TOKENS)),
    "--enable-cache-report",
    "--disable-overlap-schedule",  # nothing overlaps on a CPU; tokens would come a step late
)
_PRIORITY = ("--enable-priority-scheduling", "--retraction-policy", "priority")
_SLO = ("--slo-ttft-ms", f"{SLO.ttft_s * 1e3:g}", "--slo-tpot-ms", f"{SLO.tpot_s * 1e3:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to start a server. dialect: how requests tell it which class they are of."""

    name: str
    flags: tuple[str, ...]
    dialect: Dialect
    is_echo: bool = False


def online_alone() -> Contender:
    """Stock SGLang; the experiment sends it no offline work."""
    return Contender(name=ONLINE_ALONE, flags=_COMMON, dialect=PLAIN)


def stock_fcfs() -> Contender:
    """Stock SGLang as it comes: first come, first served."""
    return Contender(name=STOCK_FCFS, flags=_COMMON, dialect=PLAIN)


def stock_priority() -> Contender:
    """Stock SGLang with everything it offers for priorities: queue, retraction, eviction."""
    flags = (*_COMMON, *_PRIORITY, "--radix-eviction-policy", "priority")
    return Contender(name=STOCK_PRIORITY, flags=flags, dialect=PRIORITY)


def search_candidates() -> list[Contender]:
    """Stock configurations among which the best-attaining one is searched."""
    return [
        Contender(
            name=f"search-chunk{chunk_tokens}-rows{max_running}",
            flags=(
                *_COMMON, *_PRIORITY, "--radix-eviction-policy", "lru", "--enable-mixed-chunk",
                "--chunked-prefill-size", str(chunk_tokens),
                "--max-running-requests", str(max_running),
            ),
            dialect=PRIORITY,
        )
        for chunk_tokens in SEARCH_CHUNK_TOKENS
        for max_running in SEARCH_MAX_RUNNING
    ]  # fmt: skip


def stock_tuned(flags: tuple[str, ...]) -> Contender:
    """Stock SGLang with the flags that the search found."""
    return Contender(name=STOCK_TUNED, flags=flags, dialect=PRIORITY)


def echo(extra_flags: tuple[str, ...]) -> Contender:
    """Echo with the SLOs of the experiment."""
    flags = (*_COMMON, *_SLO, *extra_flags)
    return Contender(name=ECHO_CONFIG, flags=flags, dialect=ECHO, is_echo=True)
