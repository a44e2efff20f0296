"""A script that needs nothing of Echo: it runs in stock SGLang too and writes every batch down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.script_kit import Driver, Steps, prompt

if TYPE_CHECKING:
    from sglang.test.scripted_runtime.context import ScriptedContext

ARRIVALS: dict[int, list[tuple[str, int, int]]] = {
    0: [("a", 150, 20), ("b", 30, 30)],
    3: [("c", 90, 8), ("d", 40, 25)],
    6: [("e", 200, 12), ("f", 10, 5), ("g", 64, 6)],
    20: [("h", 33, 9)],
}
"""Iteration: (name, prompt tokens, output tokens). More than the slots and the KV take at once."""


def write_batches(ctx: ScriptedContext, path: str) -> Steps:
    """Run ARRIVALS and write, per batch: mode and (name, cached, computed) of each row in order."""
    driver = Driver(ctx)
    batches: list[Any] = []
    run_batch = driver.scheduler.run_batch
    prefix = driver.rid("")

    def recording(batch: Any, *args: Any, **kwargs: Any) -> Any:
        names = [req.rid.removeprefix(prefix) for req in batch.reqs]
        if batch.forward_mode.is_extend():
            sizes = list(zip(names, batch.prefix_lens, batch.extend_lens, strict=True))
        else:
            sizes = list(zip(names, batch.seq_lens_cpu.tolist(), strict=True))
        batches.append([batch.forward_mode.name, sizes])
        return run_batch(batch, *args, **kwargs)

    driver.scheduler.run_batch = recording
    try:
        for iteration in range(max(ARRIVALS) + 1):
            for name, num_tokens, num_new in ARRIVALS.get(iteration, []):
                driver.send(name, prompt(ord(name), num_tokens), num_new)
            yield from driver.step()
        yield from driver.until_finished(
            *(name for names in ARRIVALS.values() for name, *_ in names)
        )
        yield from driver.until_idle()
    finally:
        del driver.scheduler.run_batch
    outputs = {name: driver.outputs(name) for name in sorted(driver.reqs)}
    kind = f"{type(driver.scheduler).__module__}.{type(driver.scheduler).__name__}"
    text = json.dumps({"scheduler": kind, "batches": batches, "outputs": outputs})
    Path(path).write_text(text, encoding="utf-8")
