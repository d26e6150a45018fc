"""Which noise levels are trained: logit-normal, moved towards noise as the resolution's sampling schedule is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import TrainingOptions
from ..models.family import Family
from ..sampling.schedule import shift_sigmas


def training_shift(options: TrainingOptions, family: Family, latents_shape: Sequence[int]) -> float:
    """Shift for latents of shape [B, C, h, w]: the option's, or where that is 0 the one that sampling has."""
    return options.flow_schedule_shift or family.flow_shift(latents_shape)


def draw_sigmas(batch_size: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels [B] in 0..1: sigmoid(N(0, 1)), then `shift_sigmas`.

    float32, since bf16 would leave 256 different levels (the official trainers draw in bf16).
    """
    normal = torch.randn(batch_size, generator=generator, dtype=torch.float32)
    return shift_sigmas(torch.sigmoid(normal), shift)
