"""The emulator runs the batches that a live server runs, given the same arrivals.

The live server is stepped by SGLang's scripted runtime: requests come over HTTP, a real forward
pass answers them, and a script says before which iteration each arrives. The emulated device
takes a second an iteration, so there an arrival half a second earlier means the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from echo_sglang.config import EchoConfig
from echo_sglang.domain.batch import BatchShape
from echo_sglang.sim.processes import run_apart
from echo_sglang.sim.records import BatchRows, StepLog
from echo_sglang.sim.run import run
from echo_sglang.sim.setup import ServerSetup
from echo_sglang.sim.workload import Request, Segment, merge
from tests.e2e import batch_scripts
from tests.e2e.scripted_server import ScriptedServer

pytestmark = pytest.mark.server

KV_TOKENS, CONTEXT_TOKENS, SLOTS, CHUNK_TOKENS = 900, 1024, 4, 64
NO_HURRY_MS = 600_000
"""With SLOs as wide as this nothing that Echo decides about online requests depends on time."""

FLAGS = (
    *("--max-running-requests", str(SLOTS)),
    *("--chunked-prefill-size", str(CHUNK_TOKENS)),
    *("--max-total-tokens", str(KV_TOKENS)),
    "--disable-overlap-schedule",
)
LIVE_FLAGS = {
    "stock": ("--echo-off", "--enable-mixed-chunk"),
    "echo": ("--slo-ttft-ms", str(NO_HURRY_MS), "--slo-tpot-ms", str(NO_HURRY_MS)),
}


class OneSecond:
    """A device to which all batches are alike."""

    def seconds(self, shape: BatchShape) -> float:
        return 1.0


def arrivals() -> list[Request]:
    """What the script sends, each before the same iteration."""
    return [
        Request(
            rid=name,
            arrival_s=max(iteration - 0.5, 0.0),
            prompt=(Segment(ord(name), prompt_tokens),),
            output_tokens=output_tokens,
            ignores_eos=True,
        )
        for iteration, requests in batch_scripts.ARRIVALS.items()
        for name, prompt_tokens, output_tokens in requests
    ]


def emulated_batches(kind: str) -> tuple[int, str]:
    """In a process of its own: number and SHA1 of all batches."""
    hurry = EchoConfig(slo_ttft_ms=NO_HURRY_MS, slo_tpot_ms=NO_HURRY_MS)
    setup = ServerSetup(
        echo=hurry if kind == "echo" else None,
        kv_tokens=KV_TOKENS,
        context_tokens=CONTEXT_TOKENS,
        max_running=SLOTS,
        chunk_tokens=CHUNK_TOKENS,
        mixed=True,
        overlap=False,
    )
    steps = run(merge(arrivals()), OneSecond(), setup, window_s=10_000.0).emulator.steps
    return steps.iterations, steps.sha1


def live_batches(kind: str, model_path: str, folder: Path) -> tuple[int, str]:
    server = ScriptedServer(model_path=model_path, folder=folder, flags=[*FLAGS, *LIVE_FLAGS[kind]])
    try:
        server.start()
        server.run(batch_scripts.write_batches, str(folder / "batches.json"))
    finally:
        server.stop()
    steps = StepLog()
    for mode, sizes in json.loads((folder / "batches.json").read_text("utf-8"))["batches"]:
        if mode == "DECODE":
            rows = [(name, context, 1) for name, context in sizes]
        else:
            rows = [(name, cached + computed, computed) for name, cached, computed in sizes]
        steps.add(BatchShape(), 0.0, BatchRows(*zip(*rows, strict=True)))
    return steps.iterations, steps.sha1


@pytest.mark.parametrize("kind", LIVE_FLAGS)
def test_a_live_server_and_its_emulation_run_the_same_batches(
    kind: str, model_path: str, tmp_path: Path
) -> None:
    live = live_batches(kind, model_path, tmp_path)
    assert live[0] > 30
    assert next(run_apart(emulated_batches, [kind])) == live
