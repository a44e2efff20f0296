"""openai-batch: its command submits a file, waits and downloads.

Its `Batch` class reads a file that it has closed (0.3.4), whatever the server.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from client_kit import base_url, check_output, input_lines

with tempfile.TemporaryDirectory() as folder:
    source, out = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
    source.write_bytes(input_lines(10))
    subprocess.run(
        [
            *(sys.executable, "-m", "openai_batch.run", source),
            *("--base-url", base_url(), "--api-key", "none"),
            *("--output-file", out, "--error-file", Path(folder) / "errors.jsonl"),
        ],
        check=True,
        timeout=300,
    )
    check_output(out.read_text(), 10)
