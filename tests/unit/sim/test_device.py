from __future__ import annotations

from dataclasses import replace

import pytest

from echo_sglang.domain.batch import BatchShape
from echo_sglang.errors import ConfigError
from echo_sglang.sim.catalog import HARDWARE, MODELS, device_named

A100 = device_named("A100-80G:Llama-3.1-8B")
FLAT = device_named("A100-80G:Llama-3.1-8B-flat")


def test_the_parameters_of_llama_are_those_that_its_name_says() -> None:
    # Layers: 32 * (4096 * 128 * (2 * 32 + 2 * 8) + 3 * 4096 * 14336) = 6.98e9,
    # two tables of 128256 * 4096 = 0.525e9 each.
    assert MODELS["Llama-3.1-8B"].layer_parameters == 6_979_321_856
    assert MODELS["Llama-3.1-8B"].parameters == pytest.approx(8.03e9, rel=1e-3)
    assert MODELS["Llama-3.1-70B"].parameters == pytest.approx(70.55e9, rel=1e-3)


def test_a_token_of_kv_takes_128_kib() -> None:
    # 2 * 32 layers * 8 heads * 128 * 2 bytes.
    assert MODELS["Llama-3.1-8B"].kv_bytes_per_token == 128 * 1024


def test_a_lonely_decode_step_is_the_time_to_read_the_weights() -> None:
    seconds = A100.seconds(BatchShape(decode_rows=1, decode_kv_tokens=0))
    weights = (6_979_321_856 + 4096 * 128_256) * 2
    assert seconds == pytest.approx(3e-3 + weights / (2.039e12 * 0.785))


def test_decode_reads_the_kv_of_all_rows() -> None:
    short = A100.seconds(BatchShape(decode_rows=8, decode_kv_tokens=8_000))
    long = A100.seconds(BatchShape(decode_rows=8, decode_kv_tokens=108_000))
    assert long - short == pytest.approx(100_000 * 131_072 / (2.039e12 * 0.785))


def test_a_long_prefill_is_bound_by_arithmetic() -> None:
    shape = BatchShape().with_chunk(2048, 4000)
    pairs = 2048 * 4000 + 2048 * 2048 / 2
    flops = 2 * (6_979_321_856 * 2048 + 4096 * 128_256) + pairs * 4 * 32 * 32 * 128
    assert A100.seconds(shape) == pytest.approx(3e-3 + flops / 156e12)


def test_the_flat_model_charges_every_parameter_to_every_token() -> None:
    shape = BatchShape(extend_tokens=1000)
    assert FLAT.seconds(shape) == pytest.approx(3e-3 + 2 * FLAT.model.parameters * 1000 / 156e12)


def test_more_work_never_takes_less_time() -> None:
    base = BatchShape(decode_rows=4, decode_kv_tokens=4000)
    for device in (A100, FLAT, device_named("H100x4:Llama-3.1-70B")):
        seconds = [device.seconds(base.with_chunk(tokens, 100)) for tokens in range(0, 4096, 64)]
        assert seconds == sorted(seconds)


def test_tensor_parallelism_divides_the_work_and_adds_the_exchange() -> None:
    four = device_named("H100x4:Llama-3.1-70B")
    alone = replace(four, tensor_parallel=1)
    shape = BatchShape(extend_tokens=1000)
    work_s = (alone.seconds(shape) - four.hardware.overhead_s) / 4
    # Two all-reduces a layer of 1000 * 8192 * 2 bytes, 2 * 3/4 of it over a link of 450 GB/s.
    exchange_s = 2 * 80 * 1.5 * 1000 * 8192 * 2 / 450e9
    assert four.seconds(shape) == pytest.approx(four.hardware.overhead_s + work_s + exchange_s)


def test_the_least_seconds_are_below_what_any_batch_takes() -> None:
    for shape in (BatchShape(extend_tokens=64), BatchShape(decode_rows=2, decode_kv_tokens=900)):
        assert A100.least_seconds(shape) < A100.seconds(shape)


@pytest.mark.parametrize("name", ["A100", "TPU:Llama-3.1-8B", "H100:GPT-9", "", "H100x:"])
def test_an_unknown_device_is_answered_with_what_is_known(name: str) -> None:
    with pytest.raises(ConfigError, match=r"A100-80G, H100, RTX4090.*Llama-3.1-8B"):
        device_named(name)


def test_a_model_that_does_not_fit_is_refused_with_the_sizes() -> None:
    with pytest.raises(ConfigError, match="141 GB of weights do not fit 1 x 80 GB"):
        device_named("H100:Llama-3.1-70B")


def test_hardware_without_a_described_link_stays_single() -> None:
    with pytest.raises(ConfigError, match="no link"):
        device_named("RTX4090x2:Llama-3.1-8B")


def test_every_figure_names_its_source() -> None:
    for described in (*HARDWARE.values(), *MODELS.values()):
        assert len(described.source) > 20
