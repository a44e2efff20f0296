"""A model so small that its KV pool can have the size of a GPU's: 32 bytes a token."""

from __future__ import annotations

import json
from pathlib import Path

from echo_sglang.sim.answers import EOS_TOKEN, VOCABULARY

TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1 << 20,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": EOS_TOKEN,
    "torch_dtype": "bfloat16",
}


def write_tiny_model(folder: Path) -> Path:
    """Write its config.json into `folder`; the weights are SGLang's dummies."""
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    return folder
