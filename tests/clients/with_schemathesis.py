"""schemathesis: requests made up from the server's own description of files and batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)

sys.exit(
    subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis",
            *("run", f"{sys.argv[1]}/openapi.json"),
            *("--include-path-regex", "^/v1/(files|batches)"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
            *("--max-examples", "30", "--seed", "1", "--no-color", "--warnings", "off"),
        ],
        check=False,
    ).returncode
)
