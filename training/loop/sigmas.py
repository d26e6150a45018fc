"""Which noise levels are trained: drawn as the family wants, moved towards noise as its sampling schedule is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import TrainingOptions
from ..models.family import Family
from ..sampling.schedule import shift_sigmas


def training_shift(options: TrainingOptions, family: Family, latents_shape: Sequence[int]) -> float:
    """Shift for latents of this shape: the option's, or where that is not above 0 the one that sampling has."""
    shift = options.flow_schedule_shift
    return shift if shift > 0 else family.flow_shift(latents_shape)


def draw_sigmas(
    batch_size: int, shift: float, generator: torch.Generator, noise_levels: str = "logit-normal"
) -> Tensor:
    """Noise levels [B] in 0..1, drawn by `noise_levels` (a key of `DISTRIBUTIONS`), then `shift_sigmas`.

    float32, since bf16 would leave 256 different levels (the official trainers draw in bf16).
    """
    return shift_sigmas(DISTRIBUTIONS[noise_levels](batch_size, generator), shift)


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
"""`Family.noise_levels` -> levels [B] before the shift."""
