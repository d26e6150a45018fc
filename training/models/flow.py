"""Flow matching: noise levels (sigmas), noisy latents and the training target. One owner for training and sampling.

Sources: diffusers' pipeline_longcat_image_edit.py (calculate_shift) and its FlowMatchEulerDiscreteScheduler with
exponential time shift; longcat_video/pipeline_longcat_video.py of meituan-longcat/LongCat-Video.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from ..settings.run import TrainingOptions, given_shift
from .contract import Family

BASE_TOKENS, MAX_TOKENS = 256, 4096
BASE_MU, MAX_MU = 0.5, 1.15
"""LongCat-Image: two points of the line that `resolution_mu` draws."""

VIDEO_SHIFT = 12.0
"""LongCat-Video: of the released scheduler_config.json, whatever the size of the clip."""

SMALLEST_VIDEO_SIGMA = 0.001
"""LongCat-Video: the last level before 0, before it is shifted."""

DISTILLED_GRID = 50
"""Levels, evenly spaced, out of which the released cfg_step_lora was trained on some."""

DISTILLED_STEPS = 16
"""That the released cfg_step_lora is sampled with, at guidance 1."""


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """What the prediction is compared with: dx/dsigma of `add_noise`, [B, C, h, w]."""
    return noise - latents


def add_noise(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Noisy latents `(1 - sigma) * latents + sigma * noise`.

    Args:
        latents: [B, C, h, w], of a clip [B, C, T, h, w]
        noise: the same shape
        sigmas: [B] in 0..1, float32; 0 is clean, 1 is noise.
    """
    sigmas = sigmas.view(-1, *[1] * (latents.ndim - 1))
    return (1 - sigmas) * latents + sigmas * noise


def resolution_mu(tokens: int) -> float:
    """Logarithm of the shift for a picture of `tokens` tokens (width * height / 256, references not counted).

    A straight line through (256, 0.5) and (4096, 1.15), not clamped at either end.
    """
    return BASE_MU + (tokens - BASE_TOKENS) * (MAX_MU - BASE_MU) / (MAX_TOKENS - BASE_TOKENS)


def shift_sigmas(sigmas: Tensor, shift: float) -> Tensor:
    """sigmas of any shape in 0..1 -> the same shape, moved towards noise by `shift` (1 leaves them as they are)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def image_sigmas(num_inference_steps: int, shift: float) -> Tensor:
    """Levels of LongCat-Image's Euler steps: [num_inference_steps + 1], float32, falling from 1 to 0."""
    return _sampling_sigmas(torch.linspace(1, 1 / num_inference_steps, num_inference_steps, dtype=torch.float64), shift)


def video_sigmas(num_inference_steps: int) -> Tensor:
    """The same of LongCat-Video's."""
    even = torch.linspace(1, SMALLEST_VIDEO_SIGMA, num_inference_steps, dtype=torch.float64)
    return _sampling_sigmas(even, VIDEO_SHIFT)


def distilled_video_sigmas(num_inference_steps: int = DISTILLED_STEPS) -> Tensor:
    """The same for LongCat-Video with the distilled LoRA, whose levels are some of a coarse grid.

    Raises:
        ConfigError: more steps than the grid has levels.
    """
    if not 1 <= num_inference_steps <= DISTILLED_GRID:
        raise ConfigError(
            f"num_inference_steps is {num_inference_steps}; with the distilled LoRA it must be between 1 and"
            f" {DISTILLED_GRID} (usual: {DISTILLED_STEPS})."
        )
    places = torch.arange(num_inference_steps) * DISTILLED_GRID // num_inference_steps
    return _sampling_sigmas((DISTILLED_GRID - places).double() / DISTILLED_GRID, VIDEO_SHIFT)


def _sampling_sigmas(levels: Tensor, shift: float) -> Tensor:
    return torch.cat([shift_sigmas(levels, shift).to(torch.float32), torch.zeros(1)])


def training_shift(options: TrainingOptions, family: Family, latents_shape: Sequence[int]) -> float:
    """Shift for latents of this shape: the one that the options give, else the one that sampling has."""
    return given_shift(options.flow_schedule_shift) or family.flow_shift(latents_shape)


def draw_sigmas(
    batch_size: int, shift: float, generator: torch.Generator, sigma_distribution: str = "logit-normal"
) -> Tensor:
    """Sigmas [B] in 0..1, drawn by `sigma_distribution` (a key of `DISTRIBUTIONS`), then shifted.

    float32, since bf16 would leave 256 different levels (the official trainers draw in bf16).
    """
    return shift_sigmas(DISTRIBUTIONS[sigma_distribution](batch_size, generator), shift)


def _logit_normal(batch_size: int, generator: torch.Generator) -> Tensor:
    return torch.sigmoid(torch.randn(batch_size, generator=generator, dtype=torch.float32))


def _uniform(batch_size: int, generator: torch.Generator) -> Tensor:
    return torch.rand(batch_size, generator=generator, dtype=torch.float32)


DISTRIBUTIONS = {
    # As the official trainers of LongCat-Image.
    "logit-normal": _logit_normal,
    # With LongCat-Video's shift of 12, logit-normal would leave 0.6 % of the levels below a half, this 7.7 %.
    "uniform": _uniform,
}
"""`Family.sigma_distribution` -> levels [B] before the shift."""
