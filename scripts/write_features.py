"""Write docs/features.md: what of SGLang works with Echo, is refused, or is never preempted."""

from __future__ import annotations

from pathlib import Path

from echo_sglang.adapter.features import page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "features.md"

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
