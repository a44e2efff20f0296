"""How SGLang is started for an emulated server; imports nothing of it."""

from __future__ import annotations

import json

from echo_sglang.sim.catalog import device_from
from echo_sglang.sim.device import RooflineDevice


def server_flags(device_name: str) -> list[str]:
    """SGLang's flags for an emulated server: no weights, one small layer, the device's KV.

    A profile says nothing of memory: SGLang then decides. Raises ConfigError or ProfileError.
    """
    device = device_from(device_name)
    overrides = {
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    roofline = isinstance(device, RooflineDevice)
    memory = [f"--max-total-tokens={device.kv_pool_tokens}"] if roofline else []
    return [
        *memory,
        "--load-format=dummy",
        # Nothing is multiplied, so what this CPU is good at does not matter.
        "--dtype=bfloat16",
        f"--json-model-override-args={json.dumps(overrides)}",
        "--chunked-prefill-size=8192",
        "--max-running-requests=256",
    ]
