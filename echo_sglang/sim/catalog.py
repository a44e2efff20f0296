"""Hardware and models that are described, each figure with its source."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from echo_sglang.domain.batch import BatchShape
from echo_sglang.errors import ConfigError, ProfileError
from echo_sglang.estimate.profile import Profile
from echo_sglang.sim.device import Hardware, ModelShape, RooflineDevice

_ASSUMED = "; compute share 0.5 of the peak and the overhead are assumptions"

HARDWARE = {
    hardware.name: hardware
    for hardware in (
        Hardware(
            name="A100-80G",
            peak_flops=312e12,
            compute_share=0.5,
            memory_bytes_per_s=2.039e12,
            memory_share=0.785,  # 1.6 TB/s
            overhead_s=3e-3,
            memory_bytes=80e9,
            link_bytes_per_s=300e9,
            source="NVIDIA A100 datasheet, SXM4 80 GB: 312 TFLOP/s bf16 dense, 2,039 GB/s, "
            "NVLink 600 GB/s in both directions" + _ASSUMED,
        ),
        Hardware(
            name="H100",
            peak_flops=989e12,
            compute_share=0.5,
            memory_bytes_per_s=3.35e12,
            memory_share=0.785,
            overhead_s=3e-3,
            memory_bytes=80e9,
            link_bytes_per_s=450e9,
            source="NVIDIA H100 datasheet, SXM5 80 GB: 989 TFLOP/s bf16 dense, 3.35 TB/s, "
            "NVLink 900 GB/s in both directions" + _ASSUMED,
        ),
        Hardware(
            name="RTX4090",
            peak_flops=165.2e12,
            compute_share=0.85,
            memory_bytes_per_s=1.008e12,
            memory_share=0.9,
            overhead_s=3e-3,
            memory_bytes=24e9,
            source="NVIDIA Ada GPU architecture whitepaper: 165.2 TFLOP/s bf16 dense with fp32 "
            "accumulation, 1,008 GB/s" + _ASSUMED,
        ),
    )
}

_LLAMA_8B = ModelShape(
    name="Llama-3.1-8B",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    intermediate=14_336,
    vocabulary=128_256,
    source="config.json of meta-llama/Llama-3.1-8B",
)

MODELS = {
    model.name: model
    for model in (
        _LLAMA_8B,
        replace(
            _LLAMA_8B,
            name="Llama-3.1-8B-flat",
            every_parameter_counts=True,
            source="as Llama-3.1-8B, 2 x 8.03e9 operations for every token",
        ),
        ModelShape(
            name="Llama-3.1-70B",
            layers=80,
            hidden=8192,
            heads=64,
            kv_heads=8,
            head_dim=128,
            intermediate=28_672,
            vocabulary=128_256,
            source="config.json of meta-llama/Llama-3.1-70B",
        ),
    )
}


DEVICE_NAMES = {
    "A100-80G": ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
    "H100": ("NVIDIA H100 80GB HBM3",),
    "RTX4090": ("NVIDIA GeForce RTX 4090",),
}
"""How the drivers name the described hardware, and so profiles made on it."""

PROFILE = "profile:"


@dataclass(frozen=True, slots=True)
class ProfiledDevice:
    """A real server as its step-time profile describes it.

    described: the same hardware and model in the catalog, None if nobody said which.
    """

    name: str
    profile: Profile
    described: RooflineDevice | None = None

    def seconds(self, shape: BatchShape) -> float:
        """What the profile's model expects. Raises ProfileError if that is nothing."""
        seconds = self.profile.model.predict(shape)
        if seconds <= 0.0:
            raise ProfileError(f"{self.name} expects {seconds} s for {shape}; profile it again")
        return seconds


def device_from(name: str) -> RooflineDevice | ProfiledDevice:
    """What `device_named` knows; "profile:PATH" of a step-time profile; "HARDWARE:MODEL@PATH"
    of a profile that must have been made on just that.

    Raises ConfigError or ProfileError.
    """
    path = profile_path(name)
    if path is None:
        return device_named(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {path} cannot be read ({error})") from error
    profile = Profile.from_json(text)
    if name.startswith(PROFILE):
        return ProfiledDevice(name, profile)
    described = device_named(name.partition("@")[0])
    _require_profiled_on(profile, described, path)
    return ProfiledDevice(name, profile, described)


def profile_path(name: str) -> Path | None:
    """The file that a device's times are read from, None if they are computed."""
    if name.startswith(PROFILE):
        return Path(name.removeprefix(PROFILE))
    _, at, path = name.partition("@")
    return Path(path) if at else None


def _require_profiled_on(profile: Profile, device: RooflineDevice, path: Path) -> None:
    identity, width = profile.identity, device.tensor_parallel
    model = device.model.name.removesuffix("-flat")
    known = DEVICE_NAMES.get(device.hardware.name, (device.hardware.name,))
    differences = []
    if identity.hardware not in known:
        differences.append(f"on {identity.hardware}, not on {' or '.join(known)}")
    if model.lower() not in identity.model.lower():
        differences.append(f"of model {identity.model}, not of {model}")
    if identity.tp_size != width:
        differences.append(f"with tensor parallel size {identity.tp_size}, not {width}")
    if differences:
        raise ProfileError(
            f"profile {path} was made {' and '.join(differences)}; plan for what it was made on, "
            f"or say {PROFILE}{path} as the hardware and how much KV it has"
        )


def device_named(name: str) -> RooflineDevice:
    """Such as "A100-80G:Llama-3.1-8B" or "H100x4:Llama-3.1-70B".

    Raises ConfigError that lists what is known.
    """
    match = re.fullmatch(r"(?P<hardware>[^:]+?)(?:x(?P<width>\d+))?:(?P<model>.+)", name)
    hardware = HARDWARE.get(match["hardware"]) if match else None
    model = MODELS.get(match["model"]) if match else None
    if match is None or hardware is None or model is None:
        raise ConfigError(
            f"unknown device {name!r}; say HARDWARE:MODEL, HARDWARExN:MODEL or profile:PATH with "
            f"hardware {', '.join(HARDWARE)} and model {', '.join(MODELS)}"
        )
    width = int(match["width"] or 1)
    weights = model.parameters * model.bytes_per_value
    if width < 1 or weights > width * hardware.memory_bytes:
        raise ConfigError(
            f"{name}: {weights / 1e9:.0f} GB of weights do not fit {width} x "
            f"{hardware.memory_bytes / 1e9:.0f} GB; say {hardware.name}xN:{model.name} with more"
        )
    if width > 1 and not hardware.link_bytes_per_s:
        raise ConfigError(f"{name}: no link between several {hardware.name} is described; use one")
    return RooflineDevice(hardware, model, width)
