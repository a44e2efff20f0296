"""A plugin for servers of several ranks: writes every batch down, delays ranks at random, and
gives the ranks that follow clocks that tell nothing.

SGLang finds it through the entry point that `install` writes; it does nothing unless PROBE names
a folder. Each rank writes `rank<N>`: a line per batch, a SHA1 of mode, rows and KV slots.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path
from typing import Any

PROBE = "ECHO_TEST_RANK_PROBE"
DELAYS_S = (0.0, 0.0, 0.0, 0.001, 0.004, 0.015)


def install(folder: Path) -> dict[str, str]:
    """Make the plugin known to servers with this environment; they write into `folder`."""
    metadata = folder / "site" / "rank_probe-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: rank-probe\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        f"[sglang.srt.plugins]\nrank_probe = {__name__}:register\n"
    )
    root = Path(__file__).resolve().parents[2]
    search_path = [str(folder / "site"), str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(search_path), PROBE: str(folder)}


def batches_of(folder: Path, rank: int) -> list[str]:
    """What a rank wrote so far."""
    path = folder / f"rank{rank}"
    return path.read_text().splitlines() if path.exists() else []


def register() -> None:
    """Runs in every process of the server."""
    if PROBE not in os.environ:
        return
    from sglang.srt.runtime_context import get_parallel

    from echo_sglang.adapter.scheduler import EchoScheduler

    run_batch, ingest = EchoScheduler.run_batch, EchoScheduler.ingest_requests
    clock, wall_clock = EchoScheduler.echo_clock, EchoScheduler.echo_wall_clock
    chance = random.Random(os.getpid())
    folder = Path(os.environ[PROBE])

    def writing(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        with (folder / f"rank{get_parallel().tp_rank}").open("a") as file:
            file.write(digest(batch) + "\n")
        time.sleep(chance.choice(DELAYS_S))
        return run_batch(self, batch, *args, **kwargs)

    def late(self: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(chance.choice(DELAYS_S))
        return ingest(self, *args, **kwargs)

    def misleading(self: Any) -> float:
        return clock(self) if get_parallel().tp_rank == 0 else chance.uniform(0.0, 1e6)

    def misleading_wall(self: Any) -> float:
        return wall_clock(self) if get_parallel().tp_rank == 0 else chance.uniform(0.0, 1e10)

    EchoScheduler.run_batch = writing
    EchoScheduler.ingest_requests = late
    EchoScheduler.echo_clock = misleading
    EchoScheduler.echo_wall_clock = misleading_wall


def digest(batch: Any) -> str:
    """SHA1 of what a batch computes, for whom and in which slots of KV."""
    extend = batch.forward_mode.is_extend()
    what = (
        batch.forward_mode.name,
        [(req.rid, len(req.output_ids)) for req in batch.reqs],
        batch.seq_lens_cpu.tolist(),
        (list(batch.prefix_lens), list(batch.extend_lens)) if extend else None,
        batch.req_pool_indices.tolist(),
        batch.out_cache_loc.tolist(),
    )
    return hashlib.sha1(repr(what).encode()).hexdigest()
