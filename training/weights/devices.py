"""Which dtype a device computes in, and what it cannot do; always with the reason."""

from __future__ import annotations

import torch

from ..errors import ConfigError

BFLOAT16_ON_CUDA = 8
"""Compute capability (Ampere, the RTX 30 series) from which NVIDIA's cards have bfloat16 and do not emulate it."""

BFLOAT16_ON_MAC = (14, 0)
"""macOS version from which Apple's GPUs have bfloat16 in torch."""


def choose_dtype(device: torch.device, precision: str) -> tuple[torch.dtype, str]:
    """The dtype that weights are computed in on `device`, and why; a quantised base computes in it as well.

    float16 is never chosen: its largest number is 65504, while the released weights were trained in bfloat16, whose
    range is that of float32.

    Args:
        device: where the model will be.
        precision: of `ModelConfig.base_model_precision`.

    Raises:
        ConfigError: the device cannot do `precision`.
    """
    _refuse_impossible(device, precision)
    if precision == "fp32":
        return torch.float32, f"{precision} computes in float32"
    lacking = _lacks_bfloat16(device)
    if lacking:
        return (
            torch.float32,
            f"{lacking}, so {precision} computes in float32: slower, and activations take twice the memory",
        )
    return torch.bfloat16, f"{precision} computes in bfloat16, as the model was trained"


def _refuse_impossible(device: torch.device, precision: str) -> None:
    reason = ""
    if device.type == "mps" and precision == "fp8-torchao":
        reason = "Apple's GPUs have no float8"
    elif device.type == "mps" and precision == "int4-quanto":
        reason = "4-bit weights are not expanded on Apple's GPUs without Xcode, and were never tried there"
    elif device.type == "cuda" and precision == "int4-quanto" and not _has_cuda_toolkit():
        reason = "its kernel is compiled by NVIDIA's CUDA toolkit (nvcc), which was not found (CUDA_HOME, or the PATH)"
    if reason:
        raise ConfigError(
            f"precision {precision} does not work on {device.type}: {reason}. Choose int8-quanto or bf16."
        )


def _lacks_bfloat16(device: torch.device) -> str:
    """Why `device` has no bfloat16; "" when it has."""
    # torch's own is_bf16_supported looks at the current device, which need not be this one; AMD cards all have it.
    if (
        device.type == "cuda"
        and not torch.version.hip
        and torch.cuda.get_device_capability(device)[0] < BFLOAT16_ON_CUDA
    ):
        name = torch.cuda.get_device_name(device)
        return f"{name} has no bfloat16 (NVIDIA cards have it from the RTX 30 series on)"
    if device.type == "mps" and not torch.backends.mps.is_macos_or_newer(*BFLOAT16_ON_MAC):
        return f"bfloat16 on Apple's GPUs needs macOS {BFLOAT16_ON_MAC[0]} or newer"
    return ""


def _has_cuda_toolkit() -> bool:
    from torch.utils.cpp_extension import CUDA_HOME  # imports setuptools

    return CUDA_HOME is not None
