"""The CPU attention backend against SGLang's torch_native, call by call, on real KV pools.

`python eval/bench_cpu_attention.py` prints a table and writes results/cpu_attention.json. Both
backends answer the same batch of one SmolLM2-135M layer (9 heads, 3 KV heads, head_dim 64); the
two are measured in turn. A run is the median of a few calls in a row, the ratio the median of the
ratios of neighbouring runs; beside it stands the ratio of the two fastest tenths of the runs,
which other processes of the machine disturb least.
"""

# ruff: noqa: E402  (the environment must stand before torch and SGLang are imported)

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from echo_sglang.platform.threads import limit_spinning

os.environ["SGLANG_PLATFORM"] = "echo_cpu"
limit_spinning(os.environ)

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

from echo_sglang.platform.cpu_attention import CpuAttentionBackend
from eval.harness.provenance import collect_provenance
from eval.harness.server import REPOSITORY

HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
KV_TOKENS = 20_000
CALLS_PER_RUN = 5
TOLERANCE = 0.02
"""Largest difference of two bfloat16 answers; values are about 1, so this is two roundings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A batch: (cached tokens, new tokens) of every row, and the ratio to reach, if any."""

    name: str
    rows: tuple[tuple[int, int], ...]
    mode: ForwardMode
    target: float | None = None


CASES = (
    Case(name="256-token chunk, 1,000-token prefix", rows=((1000, 256),),
         mode=ForwardMode.EXTEND, target=2.5),
    Case(name="one-token row of a mixed batch, 1,000 tokens", rows=((999, 1),),
         mode=ForwardMode.MIXED, target=10.0),
    Case(name="mixed: that chunk and 8 one-token rows", rows=((1000, 256), *(((999, 1),) * 8)),
         mode=ForwardMode.MIXED),
    Case(name="256-token prompt, nothing cached", rows=((0, 256),), mode=ForwardMode.EXTEND),
    Case(name="1,000-token prompt, nothing cached", rows=((0, 1000),), mode=ForwardMode.EXTEND),
    Case(name="decode, 8 rows of 1,000 tokens", rows=((999, 1),) * 8, mode=ForwardMode.DECODE),
    Case(name="decode, 8 rows of 60 to 1,000 tokens",
         rows=tuple((n - 1, 1) for n in (1000, 900, 500, 400, 200, 120, 100, 60)),
         mode=ForwardMode.DECODE),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Medians of one case. `largest_difference` is between the two backends' answers."""

    case: str
    torch_native_us: float
    echo_cpu_us: float
    ratio: float
    ratio_of_fastest_tenths: float
    target: float | None
    largest_difference: float

    @property
    def reached(self) -> bool:
        return self.target is None or self.ratio >= self.target


class Bench:
    """One attention layer, one KV pool, both backends."""

    def __init__(self, *, dtype: torch.dtype, seed: int) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.layer = RadixAttention(HEADS, HEAD_DIM, HEAD_DIM**-0.5, KV_HEADS, layer_id=0)
        self.requests = ReqToTokenPool(16, 4096, "cpu", False)
        self.pool = MHATokenToKVPool(
            KV_TOKENS, 1, dtype, KV_HEADS, HEAD_DIM, 1, "cpu", False, enable_alt_stream=False
        )
        for buffer in (*self.pool.k_buffer, *self.pool.v_buffer):
            buffer.normal_(generator=self.generator)
        runner = SimpleNamespace(
            device="cpu",
            req_to_token_pool=self.requests,
            token_to_kv_pool=self.pool,
            use_mla_backend=False,
            model=self.layer,
        )
        self.torch_native = TorchNativeAttnBackend(runner)
        self.echo_cpu = CpuAttentionBackend(runner)

    def batch(self, case: Case) -> ForwardBatch:
        """Scatter the rows over random KV slots."""
        slots = torch.randperm(KV_TOKENS, generator=self.generator) + 1
        new_slots, taken = [], 0
        for line, (prefix_len, new) in enumerate(case.rows, start=1):
            row = slots[taken : taken + prefix_len + new]
            self.requests.req_to_token[line, : row.numel()] = row.to(torch.int32)
            new_slots.append(row[prefix_len:])
            taken += row.numel()
        prefix_lens, new_lens = (torch.tensor(column) for column in zip(*case.rows, strict=True))
        batch = ForwardBatch(
            forward_mode=case.mode,
            batch_size=len(case.rows),
            input_ids=torch.zeros(int(new_lens.sum()), dtype=torch.int64),
            req_pool_indices=torch.arange(1, len(case.rows) + 1),
            seq_lens=prefix_lens + new_lens,
            out_cache_loc=torch.cat(new_slots),
            seq_lens_sum=int((prefix_lens + new_lens).sum()),
        )
        if case.mode != ForwardMode.DECODE:
            batch.extend_prefix_lens = prefix_lens.to(torch.int32)
            batch.extend_seq_lens = new_lens.to(torch.int32)
        return batch

    def tensors(self, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random q, k, v of `num_tokens` tokens, as a model hands them over."""

        def random(heads: int) -> torch.Tensor:
            values = torch.randn(num_tokens, heads, HEAD_DIM, generator=self.generator)
            return values.to(self.dtype)

        return random(HEADS).flatten(1), random(KV_HEADS), random(KV_HEADS)

    def measure(self, case: Case, *, repeats: int) -> Measurement:
        """Time the layer's call; planning is outside, as it is shared by a model's layers."""
        batch = self.batch(case)
        q, k, v = self.tensors(batch.input_ids.numel())
        calls = []
        for backend in (self.torch_native, self.echo_cpu):
            backend.init_forward_metadata(batch)
            calls.append(lambda backend=backend: backend.forward(q, k, v, self.layer, batch))
        answers = [call() for call in calls]
        difference = float((answers[0].float() - answers[1].float()).abs().max())
        times = [[_run_us(call) for call in calls] for _ in range(repeats)]
        native_us, echo_us = zip(*times, strict=True)
        return Measurement(
            case=case.name,
            torch_native_us=statistics.median(native_us),
            echo_cpu_us=statistics.median(echo_us),
            ratio=statistics.median(native / echo for native, echo in times),
            ratio_of_fastest_tenths=_fastest_tenth(native_us) / _fastest_tenth(echo_us),
            target=case.target,
            largest_difference=difference,
        )


def _run_us(call: Callable[[], torch.Tensor]) -> float:
    times_s = []
    for _ in range(CALLS_PER_RUN):
        begin_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - begin_s)
    return statistics.median(times_s) * 1e6


def _fastest_tenth(times_us: Sequence[float]) -> float:
    return sorted(times_us)[len(times_us) // 10]


def report(measurements: list[Measurement]) -> str:
    """The table for people."""
    line = "{:46} {:>15} {:>12} {:>7} {:>9} {:>9}".format
    lines = [
        line("one layer's call", "torch_native us", "echo_cpu us", "ratio", "fastest", "to reach")
    ]
    for measured in measurements:
        lines.append(
            line(
                measured.case,
                f"{measured.torch_native_us:,.0f}",
                f"{measured.echo_cpu_us:,.0f}",
                f"{measured.ratio:.1f}",
                f"{measured.ratio_of_fastest_tenths:.1f}",
                "" if measured.target is None else f"{measured.target:.1f}",
            )
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write. Returns 1 when a ratio is missed or the answers differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=25, help="runs per case (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=None, help="default: OMP_NUM_THREADS")
    parser.add_argument(
        "--output", type=Path, default=REPOSITORY / "results" / "cpu_attention.json"
    )
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    bench = Bench(dtype=torch.bfloat16, seed=arguments.seed)
    with torch.no_grad():
        measurements = [bench.measure(case, repeats=arguments.repeats) for case in CASES]
    provenance = collect_provenance(
        model_path=Path("smollm2-135m-shapes"), pythons={"both": sys.executable}
    )
    record = {
        "provenance": provenance,
        "threads": torch.get_num_threads(),
        "seed": arguments.seed,
        "repeats": arguments.repeats,
        "calls_per_run": CALLS_PER_RUN,
        "dtype": "bfloat16",
        "measurements": [asdict(measured) for measured in measurements],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(report(measurements))
    print(f"{provenance['cpu']}, {record['threads']} threads, bfloat16, seed {arguments.seed}")
    print(f"written: {arguments.output}")
    missed = [measured.case for measured in measurements if not measured.reached]
    wrong = [m.case for m in measurements if m.largest_difference > TOLERANCE]
    for title, cases in (("ratio missed", missed), ("answers differ", wrong)):
        for case in cases:
            print(f"{title}: {case}", file=sys.stderr)
    return 1 if missed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
