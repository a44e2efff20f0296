"""--echo-off on the patched SGLang schedules as the stock package does, batch by batch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import batch_scripts
from tests.e2e.live_server import ECHO_MODULE, STOCK_MODULE
from tests.e2e.scripted_server import PROJECT_ROOT, ScriptedServer

pytestmark = pytest.mark.server

FLAGS = (
    *("--max-running-requests", "4"),
    *("--chunked-prefill-size", "64"),
    *("--max-total-tokens", "900"),
    "--enable-mixed-chunk",
)


@pytest.fixture(scope="module")
def stock_python() -> str:
    """A Python with the stock SGLang package and this project."""
    default = PROJECT_ROOT / ".venv-stock" / "bin" / "python"
    python = os.environ.get("ECHO_STOCK_PYTHON", str(default))
    if not Path(python).exists():
        pytest.skip(f"no Python with stock SGLang at {python}; run make venvs")
    return python


def batches_of(folder: Path, **options: Any) -> dict[str, Any]:
    folder.mkdir()
    server = ScriptedServer(folder=folder, **options)
    try:
        server.start()
        server.run(batch_scripts.write_batches, str(folder / "batches.json"))
    finally:
        server.stop()
    found: dict[str, Any] = json.loads((folder / "batches.json").read_text(encoding="utf-8"))
    return found


def test_the_same_rids_lengths_and_order_in_every_batch(
    model_path: str, stock_python: str, tmp_path: Path
) -> None:
    stock = batches_of(
        tmp_path / "stock",
        model_path=model_path,
        module=STOCK_MODULE,
        flags=FLAGS,
        python=stock_python,
        environment={"PYTHONPATH": str(PROJECT_ROOT)},
    )
    off = batches_of(
        tmp_path / "off", model_path=model_path, module=ECHO_MODULE, flags=[*FLAGS, "--echo-off"]
    )
    assert stock["scheduler"] == off["scheduler"] == "sglang.srt.managers.scheduler.Scheduler"
    assert off["batches"] == stock["batches"]
    assert off["outputs"] == stock["outputs"]
    modes = {mode for mode, _ in stock["batches"]}
    assert {"EXTEND", "MIXED", "DECODE"} <= modes
