"""LongCat-Video's noise levels (follows longcat_video/pipeline_longcat_video.py of meituan-longcat/LongCat-Video).

They are given as they are, because diffusers' scheduler would shift its own smallest level twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from .schedule import shift_sigmas

FLOW_SHIFT = 12.0
"""Of the released scheduler_config.json, whatever the size of the clip."""

SMALLEST = 0.001
"""Last level before 0, before it is shifted."""

DISTILL_GRID = 50
"""Levels, evenly spaced, out of which the distilled LoRA was trained on some."""

DISTILL_STEPS = 16
"""That the released cfg_step_lora is sampled with, at guidance 1."""


def video_sigmas(num_inference_steps: int, shift: float = FLOW_SHIFT) -> Tensor:
    """Noise levels of an Euler sampler: [num_inference_steps + 1], float32, falling from 1 to 0.

    Raises:
        ConfigError: `shift` is not above 0.
    """
    return _shifted(torch.linspace(1, SMALLEST, num_inference_steps, dtype=torch.float64), shift)


def distill_sigmas(num_inference_steps: int = DISTILL_STEPS, shift: float = FLOW_SHIFT) -> Tensor:
    """The same for the distilled LoRA, whose levels are some of a coarse grid.

    Raises:
        ConfigError: more steps than the grid has levels, or `shift` is not above 0.
    """
    if not 1 <= num_inference_steps <= DISTILL_GRID:
        raise ConfigError(
            f"num_inference_steps is {num_inference_steps}; with the distilled LoRA it must be between 1 and"
            f" {DISTILL_GRID} (usual: {DISTILL_STEPS})."
        )
    places = torch.arange(num_inference_steps) * DISTILL_GRID // num_inference_steps
    return _shifted((DISTILL_GRID - places).double() / DISTILL_GRID, shift)


def _shifted(sigmas: Tensor, shift: float) -> Tensor:
    if not shift > 0:
        raise ConfigError(
            f"The shift of the noise levels is {shift}; it must be above 0, or every level would become 0. LongCat-"
            f"Video's own is {FLOW_SHIFT:g}."
        )
    return torch.cat([shift_sigmas(sigmas, shift).to(torch.float32), torch.zeros(1)])
