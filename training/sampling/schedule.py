"""The noise levels of the released schedule (follows diffusers: pipeline_longcat_image_edit.py calculate_shift,
FlowMatchEulerDiscreteScheduler with exponential time shift)."""

from __future__ import annotations

import torch
from torch import Tensor

BASE_TOKENS, MAX_TOKENS = 256, 4096
BASE_MU, MAX_MU = 0.5, 1.15


def resolution_mu(tokens: int) -> float:
    """Logarithm of the shift for a picture of `tokens` tokens (width * height / 256, references not counted).

    A straight line through (256, 0.5) and (4096, 1.15), not clamped at either end.
    """
    return BASE_MU + (tokens - BASE_TOKENS) * (MAX_MU - BASE_MU) / (MAX_TOKENS - BASE_TOKENS)


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """sigmas of any shape in 0..1 -> the same shape, moved towards noise by `shift` (1 leaves them as they are)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def sampling_sigmas(num_inference_steps: int, shift: float) -> Tensor:
    """Noise levels of an Euler sampler: [num_inference_steps + 1], float32, falling from 1 to 0."""
    even = torch.linspace(1, 1 / num_inference_steps, num_inference_steps, dtype=torch.float64)
    shifted = shift_sigmas(even, shift).to(torch.float32)
    return torch.cat([shifted, torch.zeros(1)])
