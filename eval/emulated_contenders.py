"""The servers that the emulated experiment compares: stock, and Echo part by part.

The paper's ablation as we read it (it has no public code):

    stock-priority   BS      SGLang with all it offers for two classes: queue, preemption,
                             retraction; chunks of 8,192 tokens, prefill before decode
    stock-estimator  BS+E    the same, mixed, each iteration's prefill cut so that Echo's
                             step-time model puts its end within the TPOT SLO
    echo-no-cache    BS+E+S  Echo's co-scheduler over SGLang's own LRU cache
    echo             Echo    with its KV manager

and beside it online traffic alone, and two stock configurations that a search finds: the best
under the SLO (stock-tuned), and the one of highest offline throughput whatever it costs online
requests (stock-fastest).
"""

from __future__ import annotations

from dataclasses import replace

from echo_sglang.config import EchoConfig, EvictionPolicy
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.setup import ServerSetup

ONLINE_ALONE = "online-alone"
STOCK_PRIORITY = "stock-priority"
STOCK_ESTIMATOR = "stock-estimator"
ECHO_NO_CACHE = "echo-no-cache"
ECHO = "echo"
STOCK_TUNED = "stock-tuned"
STOCK_FASTEST = "stock-fastest"
SEARCHED = (STOCK_TUNED, STOCK_FASTEST)
CONTENDERS = (
    ONLINE_ALONE,
    STOCK_PRIORITY,
    STOCK_ESTIMATOR,
    ECHO_NO_CACHE,
    ECHO,
    *SEARCHED,
)
PAPER_NAMES = {
    STOCK_PRIORITY: "BS",
    STOCK_ESTIMATOR: "BS+E",
    ECHO_NO_CACHE: "BS+E+S",
    ECHO: "Echo",
}

SEARCH_CHUNK_TOKENS = (256, 512, 1024, 2048)
SEARCH_EVICTION = ("lfu", "priority")  # lru, SGLang's default, is in the first round


def stock_setup(kv_tokens: int) -> ServerSetup:
    """SGLang with all that it offers for priorities, its chunk size as on a GPU of this size."""
    return ServerSetup(
        kv_tokens=kv_tokens, priority=True, server_args={"retraction_policy": "priority"}
    )


def estimator_setup(kv_tokens: int, slo: Slo, margin: float) -> ServerSetup:
    """The same with chunks that a step-time model bounds; Echo's share of the SLO is planned."""
    return replace(stock_setup(kv_tokens), mixed=True, bound_s=margin * slo.tpot_s)


def echo_setup(
    kv_tokens: int, slo: Slo, config: EchoConfig, server_args: dict[str, object]
) -> ServerSetup:
    """Echo as its launcher starts it, with the SLO of the scenario."""
    told = replace(config, slo_ttft_ms=slo.ttft_s * 1e3, slo_tpot_ms=slo.tpot_s * 1e3)
    return ServerSetup(echo=told, kv_tokens=kv_tokens, mixed=True, server_args=server_args)


def without_cache(config: EchoConfig) -> EchoConfig:
    """The co-scheduler over SGLang's cache."""
    return replace(config, eviction=EvictionPolicy.LRU.value)


def chunk_setups(base: ServerSetup) -> dict[str, ServerSetup]:
    """First round of the search for the best stock configuration: chunk size and mixing."""
    return {
        f"chunk{chunk}-{'mixed' if mixed else 'separate'}": replace(
            base, chunk_tokens=chunk, mixed=mixed
        )
        for chunk in SEARCH_CHUNK_TOKENS
        for mixed in (True, False)
    }


def eviction_setups(name: str, setup: ServerSetup) -> dict[str, ServerSetup]:
    """Second round: the winner of the first, and the same with other evictions."""
    others = {
        f"{name}-{eviction}": replace(
            setup, server_args={**setup.server_args, "radix_eviction_policy": eviction}
        )
        for eviction in SEARCH_EVICTION
    }
    return {name: setup, **others}
