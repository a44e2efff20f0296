"""Hardware and models that are described, each figure with its source."""

from __future__ import annotations

import re

from echo_sglang.errors import ConfigError
from echo_sglang.sim.device import Hardware, ModelShape, RooflineDevice

HARDWARE = {
    "A100-80G": Hardware(
        name="A100-80G",
        peak_flops=312e12,
        compute_share=0.5,
        memory_bytes_per_s=2.039e12,
        memory_share=0.785,
        overhead_s=3e-3,
        memory_bytes=80e9,
        link_bytes_per_s=300e9,
        source="NVIDIA A100 datasheet (SXM4 80 GB): 312 TFLOP/s bf16 dense, 2,039 GB/s, NVLink "
        "600 GB/s in both directions; shares and overhead are assumptions",
    ),
}

MODELS = {
    "Llama-3.1-8B": ModelShape(
        name="Llama-3.1-8B",
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        intermediate=14_336,
        vocabulary=128_256,
        source="config.json of meta-llama/Llama-3.1-8B",
    ),
}


def device_named(name: str) -> RooflineDevice:
    """Such as "A100-80G:Llama-3.1-8B" or "H100x4:Llama-3.1-70B".

    Raises ConfigError that lists what is known.
    """
    match = re.fullmatch(r"(?P<hardware>[^:]+?)(?:x(?P<width>\d+))?:(?P<model>.+)", name)
    hardware = HARDWARE.get(match["hardware"]) if match else None
    model = MODELS.get(match["model"]) if match else None
    if match is None or hardware is None or model is None:
        raise ConfigError(
            f"unknown device {name!r}; say HARDWARE:MODEL or HARDWARExN:MODEL with hardware "
            f"{', '.join(HARDWARE)} and model {', '.join(MODELS)}"
        )
    return RooflineDevice(hardware, model, int(match["width"] or 1))
