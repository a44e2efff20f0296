"""Which CPUs multiply bf16 matrices. Imports neither torch nor SGLang."""

from __future__ import annotations

WITHOUT_BF16 = ("DEFAULT", "AVX2")
"""Levels of x86 vector instructions, as torch names them, at which oneDNN does not multiply bf16
matrices. What torch does instead is a loop over the rows. On two cores of an AMD EPYC with AVX2 the
products of SmolLM2-135M took 1,956 ms for 128 rows and 63 ms for 4, in float32 384 ms and 144 ms:
float32 reads twice as much, but pays it once for all rows."""


def multiplies_bf16(capability: str, machine: str) -> bool:
    """False where float32 computes prompts several times faster than bf16.

    capability: `torch.backends.cpu.get_cpu_capability()`. machine: `platform.machine()`.
    """
    return machine not in ("x86_64", "AMD64") or capability not in WITHOUT_BF16
