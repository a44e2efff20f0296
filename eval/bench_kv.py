"""What the KV cache costs the scheduler: Echo's tree core beside SGLang's Rust and Python cores.

    python eval/bench_kv.py [--leaves 1000,10000,100000] [--prompts 100000] [--repeats 2]

One process a core and size, the cores in turn: a tree of `leaves` sequences (16 to a shared
document of 512 tokens, 64 tokens of their own), then medians of single operations, page size 1;
of --repeats such rounds the least median counts, since other processes only add. Echo's tree
carries the references of as many waiting prompts as it has leaves. Then the memory of a pool of
prompts of 1,000 tokens that share documents. Figures are microseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CORES = ("rust", "python", "echo")
DOCUMENT_TOKENS = 512
OWN_TOKENS = 64
SIBLINGS = 16
ROUNDS = 300
SEED = 7

Timings = dict[str, float]


def sequence(leaf: int, tail: int = 0) -> array[int]:
    """Prompt `leaf`: its document, then tokens of its own; `tail` makes another of the kind."""
    document = leaf // SIBLINGS
    rng = random.Random(f"{SEED}-{document}")
    shared = array("q", [rng.randrange(100_000) for _ in range(DOCUMENT_TOKENS)])
    own = random.Random(f"{SEED}-{leaf}-{tail}")
    return shared + array("q", [own.randrange(100_000) for _ in range(OWN_TOKENS)])


class Bench:
    """A cache with one tree core, filled, and its operations."""

    def __init__(self, core: str, leaves: int) -> None:
        self.core = core
        self.leaves = leaves
        tokens = leaves * OWN_TOKENS + (leaves // SIBLINGS + 1) * DOCUMENT_TOKENS
        self.cache, self.allocator = build_cache(core, tokens + 2 * ROUNDS * OWN_TOKENS)
        if core == "echo":
            self._attach()
        before = resident_bytes()
        for leaf in range(leaves):
            self._insert(sequence(leaf))
        values = 8 * tokens
        self.bytes_per_leaf = (resident_bytes() - before - values) / leaves
        self._rng = random.Random(SEED)
        self._fresh = 0
        self._held: Any = None
        self._inserted = array("q")
        if core == "echo":
            self._pool()

    def measure(self) -> Timings:
        """Median microseconds of each operation."""
        found = {
            "match": self._timed(self._match_one),
            "insert": self._timed(self._insert_one),
            "lock+unlock": self._timed(self._lock_one),
        }
        self.cache.unlock(self._held)
        found["evict"] = self._timed(self._evict_one)
        if self.core == "echo":
            found["reference"] = self._timed(self._reference_one)
        found["bytes/leaf"] = self.bytes_per_leaf
        return found

    def _attach(self) -> None:
        from echo_sglang.kv.namespaces import Namespaces
        from echo_sglang.kv.prefix_index import PrefixIndex

        self.index: PrefixIndex[int] = PrefixIndex()
        self.cache.tree_core.attach(time.perf_counter, self.index, Namespaces())

    def _pool(self) -> None:
        core = self.cache.tree_core
        for leaf in range(self.leaves):
            tokens = sequence(leaf, tail=1)
            self.index.insert(leaf, tokens)
            core.references_changed(tokens, None, None)

    def _timed(self, prepare: Callable[[], Callable[[], Any]]) -> float:
        seconds = []
        for _ in range(ROUNDS):
            operation = prepare()
            start = time.perf_counter()
            operation()
            seconds.append(time.perf_counter() - start)
        return 1e6 * statistics.median(seconds)

    def _key(self, tokens: array[int]) -> Any:
        from sglang.srt.mem_cache.radix_cache import RadixKey

        return RadixKey(tokens)

    def _match_one(self) -> Callable[[], Any]:
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams

        key = self._key(sequence(self._rng.randrange(self.leaves)))
        return lambda: self.cache.match_prefix(MatchPrefixParams(key=key))

    def _insert(self, tokens: array[int]) -> None:
        self._insertion(tokens)()

    def _insertion(self, tokens: array[int]) -> Callable[[], Any]:
        from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams

        key = self._key(tokens)
        cached = self.cache.match_prefix(MatchPrefixParams(key=key)).device_prefix_len
        value = self.allocator.alloc(len(tokens) - cached)
        import torch

        values = torch.cat([torch.zeros(cached, dtype=torch.int64), value])
        params = InsertParams(key=key, value=values, prev_prefix_len=cached)
        return lambda: self.cache.insert(params)

    def _insert_one(self) -> Callable[[], Any]:
        """A request gives its own tokens to the tree; it holds the prefix that it shares.

        As in SGLang, its lock then moves to what it inserted until it is released; that is not
        timed here.
        """
        if self._held is not None:
            self.cache.unlock(self._hold(self._inserted))
            self.cache.unlock(self._held)
        self._fresh += 1
        self._inserted = sequence(self._rng.randrange(self.leaves), tail=1 + self._fresh)
        self._held = self._hold(self._inserted)
        return self._insertion(self._inserted)

    def _hold(self, tokens: array[int]) -> Any:
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams

        match = self.cache.match_prefix(MatchPrefixParams(key=self._key(tokens)))
        return self.cache.lock(match.last_device_node)

    def _lock_one(self) -> Callable[[], Any]:
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams

        key = self._key(sequence(self._rng.randrange(self.leaves)))
        node = self.cache.match_prefix(MatchPrefixParams(key=key)).last_device_node
        return lambda: self.cache.unlock(self.cache.lock(node))

    def _evict_one(self) -> Callable[[], Any]:
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams

        return lambda: self.cache.evict(EvictParams(num_tokens=1))

    def _reference_one(self) -> Callable[[], Any]:
        key = self._rng.choice(range(self.leaves))
        tokens = sequence(key)  # a prompt that ends in a cached leaf
        rid = -1

        def change() -> None:
            self.index.insert(rid, tokens)
            self.cache.tree_core.references_changed(tokens, None, None)
            self.index.remove(rid)
            self.cache.tree_core.references_changed(tokens, None, None)

        return change


def build_cache(core: str, tokens: int) -> tuple[Any, Any]:
    """SGLang's unified cache on one tree core, and its allocator; no KV buffers behind it."""
    import sglang.srt.utils  # noqa: F401  (must come before sglang.srt.platforms)
    import torch
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
    from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

    torch.set_num_threads(1)
    set_global_server_args_for_scheduler(ServerArgs(model_path="dummy", device="cpu"))
    allocator = TokenToKVPoolAllocator(
        size=tokens, dtype=torch.bfloat16, device="cpu", kvcache=None, need_sort=False
    )
    params = CacheInitParams(
        req_to_token_pool=None,
        token_to_kv_pool_allocator=allocator,
        page_size=1,
        disable=False,
        tree_components=(ComponentType.FULL,),
        tree_core_backend=core,
    )
    if core != "echo":
        return UnifiedRadixCache(params), allocator
    from echo_sglang.adapter import radix_cache
    from echo_sglang.config import EchoConfig

    radix_cache.register(EchoConfig())
    params.component_registry_override = {ComponentType.FULL: radix_cache.EchoFullComponent}
    return radix_cache.EchoRadixCache(params), allocator


def resident_bytes() -> int:
    """Memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def pool_memory(prompts: int) -> dict[str, float]:
    """Bytes per pooled prompt of 1,000 tokens, 20 to a document of 900, as the server pools it."""
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    from echo_sglang.adapter.offline_queue import OfflineQueue
    from echo_sglang.domain.tag import RequestTag, ServiceClass
    from echo_sglang.policy.offline_pool import PoolSettings

    def prompt(number: int) -> array[int]:
        shared = random.Random(number // 20)
        own = random.Random(f"own-{number}")
        tokens = [shared.randrange(100_000) for _ in range(900)]
        return array("q", tokens + [own.randrange(100_000) for _ in range(100)])

    queue = OfflineQueue(PoolSettings(), lambda recv: None)
    tag = RequestTag(service_class=ServiceClass.OFFLINE)
    before = resident_bytes()
    seconds = 0.0
    for number in range(prompts):
        recv = TokenizedGenerateReqInput(
            rid=f"request-{number}",
            input_text=None,
            input_ids=prompt(number),
            input_embeds=None,
            mm_inputs=None,
            token_type_ids=None,
            sampling_params=SamplingParams(max_new_tokens=64),
            return_logprob=False,
            logprob_start_len=-1,
            top_logprobs_num=0,
            token_ids_logprob=None,
            stream=False,
        )
        start = time.perf_counter()
        queue.add_tokenized(
            recv, tag, now_s=0.0, deadline_s=None, cached_tokens=0, max_new_tokens=64
        )
        seconds += time.perf_counter() - start
    grown = resident_bytes() - before
    return {
        "bytes/prompt": grown / prompts,
        "total MB": grown / 1e6,
        "add us": 1e6 * seconds / prompts,
    }


def in_child(arguments: list[str]) -> dict[str, float]:
    """Run a part of this script in a process of its own: sizes must not mix."""
    ended = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(ended.stderr[-3000:])
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print one table of operations, one of ratios, and the pool's memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", default="1000,10000,100000")
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=2, help="equal rounds (%(default)s)")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only == "pool":
        print(json.dumps(pool_memory(arguments.prompts)))
        return
    if arguments.only:
        core, leaves = arguments.only.split(":")
        print(json.dumps(Bench(core, int(leaves)).measure()))
        return
    sizes = [int(count) for count in arguments.leaves.split(",")]
    report(sizes, arguments.prompts, arguments.repeats)


def least_of(leaves: int, repeats: int) -> dict[str, Timings]:
    """By core, the least of every figure; the cores take turns."""
    rounds = [
        {core: in_child(["--only", f"{core}:{leaves}"]) for core in CORES} for _ in range(repeats)
    ]
    return {
        core: {name: min(found[core][name] for found in rounds) for name in rounds[0][core]}
        for core in CORES
    }


def report(sizes: list[int], prompts: int, repeats: int) -> None:
    """Measure everything and print it."""
    names = ("match", "insert", "lock+unlock", "evict", "reference", "bytes/leaf")
    found = {}
    print(f"{'core':8}{'leaves':>9}" + "".join(f"{name:>13}" for name in names))
    for leaves in sizes:
        for core, row in least_of(leaves, repeats).items():
            found[core, leaves] = row
            cells = "".join(f"{row[n]:13.1f}" if n in row else f"{'':13}" for n in names)
            print(f"{core:8}{leaves:9}{cells}", flush=True)
    largest = sizes[-1]
    rust, echo = found["rust", largest], found["echo", largest]
    print(f"at {largest} leaves: evict {rust['evict'] / echo['evict']:.1f} times faster than Rust, "
          f"match {echo['match'] / rust['match']:.2f} times its time, "
          f"insert {echo['insert'] / rust['insert']:.2f} times")  # fmt: skip
    if len(sizes) > 1:
        growth = {n: found["echo", largest][n] / found["echo", sizes[-2]][n] for n in names[:5]}
        said = ", ".join(f"{name} {value:.2f}" for name, value in growth.items())
        print(f"growth of echo from {sizes[-2]} to {largest} leaves: {said}")
    pool = in_child(["--only", "pool", "--prompts", str(prompts)])
    print(f"pool of {prompts} prompts of 1,000 tokens: " + json.dumps(pool))


if __name__ == "__main__":
    main()
