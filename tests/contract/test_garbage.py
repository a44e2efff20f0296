"""What the scheduler is done with is freed without the collector: freezing it leaks nothing.

`adapter/collector.py` relies on it: frozen objects are freed by reference counts only.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import Any

import pytest

pytest.importorskip("sglang")

from echo_sglang.config import EchoConfig
from echo_sglang.sim.arrivals import PoissonTraffic
from echo_sglang.sim.catalog import device_from
from echo_sglang.sim.documents import DocumentQuestions
from echo_sglang.sim.metrics import Slo
from echo_sglang.sim.processes import run_apart
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.spec import RunSpec

WINDOW_S = 20.0


def left_over(values: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """By class, how many objects an emulated run made without a collector and how many are left."""
    from echo_sglang.sim.environment import prepare_environment

    prepare_environment()
    import sglang.srt.utils  # noqa: F401  (must come before sglang.srt.platforms)
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    from echo_sglang.adapter.requests import EchoReq
    from echo_sglang.sim.run import run

    made: Counter[str] = Counter()
    freed: Counter[str] = Counter()

    def count(cls: Any) -> None:
        init, name = cls.__init__, cls.__name__

        def counted(self: Any, *args: Any, **kwargs: Any) -> None:
            made[name] += 1
            weakref.finalize(self, freed.update, [name])
            init(self, *args, **kwargs)

        cls.__init__ = counted

    count(EchoReq)
    count(ScheduleBatch)
    gc.disable()
    spec = RunSpec.from_json(values)
    run(spec.workload(), device_from(spec.device), spec.setup, window_s=spec.window_s)
    return {name: (made[name], made[name] - freed[name]) for name in made}


def test_requests_and_batches_are_freed_without_the_collector() -> None:
    traffic = PoissonTraffic(rate_per_s=2.0, window_s=WINDOW_S)
    spec = RunSpec(
        device="A100-80G:Llama-3.1-8B",
        setup=ServerSetup(
            echo=EchoConfig(slo_ttft_ms=500, slo_tpot_ms=50), kv_tokens=60_000, mixed=True
        ),
        recipes=(traffic, DocumentQuestions(documents=20, document_tokens=900)),
        seed=1,
        window_s=WINDOW_S,
        slo=Slo(ttft_s=0.5, tpot_s=0.05),
    )
    (found,) = run_apart(left_over, [spec.to_json()])
    requests, requests_left = found["EchoReq"]
    batches, batches_left = found["ScheduleBatch"]
    assert requests > 100 and batches > 300
    # those of the last iterations
    assert requests_left < 40 and batches_left < 5
