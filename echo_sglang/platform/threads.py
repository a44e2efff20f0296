"""How OpenMP threads wait and where they run. Imports neither torch nor SGLang: it must come
before them."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from itertools import pairwise

SPIN_COUNT = 5000
"""Turns a thread waits awake before it sleeps. Measured on two cores with GNU OpenMP, whose
default is 300,000: alone it costs nothing, beside one busy process a 30-layer pass of 256 tokens
takes 147 ms (90th percentile 148) instead of 338 (641). Turns of 2,000 cost 8 to 25 % alone."""

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def limit_spinning(environ: MutableMapping[str, str]) -> None:
    """Set GOMP_SPINCOUNT, unless the user has said how threads are to wait.

    A server's tokenizer, detokenizer and clients share the cores with its compute threads. A
    thread that spins at a barrier keeps the core its own partner waits for. Read by GNU OpenMP
    when it is loaded: it reaches processes started from here, not this one once torch is in.
    """
    if not any(name in environ for name in SETTINGS):
        environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


BINDING = "SGLANG_CPU_OMP_THREADS_BIND"


def share_cores(environ: MutableMapping[str, str], *, num_ranks: int, cores: Sequence[int]) -> None:
    """Name the cores of every rank, unless the user did: SGLang knows only ranks that have a NUMA
    node to themselves, and refuses to start more.

    num_ranks: of all replicas together. cores: ids that this process may use, at least one. Each
    rank gets as many neighbours as all can have, or shares one where there are too few.
    """
    assert num_ranks > 0 and cores
    if num_ranks == 1 or BINDING in environ:
        return
    bounds = [len(cores) * rank // num_ranks for rank in range(num_ranks + 1)]
    groups = (cores[low : max(high, low + 1)] for low, high in pairwise(bounds))
    environ[BINDING] = "|".join(",".join(map(str, group)) for group in groups)
