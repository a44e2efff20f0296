"""One overridable method is the only clock of the scheduler process."""

from __future__ import annotations

import ast
from pathlib import Path

import echo_sglang

ADAPTER = Path(echo_sglang.__file__).parent / "adapter"
IN_THE_HTTP_PROCESS = {"http_edge.py", "batches.py", "batch_engine.py", "drain.py"}
MAY_READ_A_CLOCK = {"clock.py"} | IN_THE_HTTP_PROCESS


def imports_time(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import) and any(a.name == "time" for a in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            return True
    return False


def test_only_the_clock_module_reads_time_in_the_scheduler_process() -> None:
    readers = {path.name for path in ADAPTER.glob("*.py") if imports_time(path)}
    assert "clock.py" in readers
    assert readers <= MAY_READ_A_CLOCK
