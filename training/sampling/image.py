"""Sampling pictures: Euler steps and classifier-free guidance on float32 latents, the same for every image family.

Legend: B batch, C channels, h w latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.family import Family, ModelInputs
from .schedule import sampling_sigmas


def initial_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal noise, float32 on the CPU, so that a seed means the same picture on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


@torch.no_grad()
def sample_image(  # noqa: PLR0913 (the whole of a sampling, said once)
    family: Family,
    transformer: Any,
    noise: Tensor,
    inputs: ModelInputs,
    negative_inputs: ModelInputs | None,
    num_inference_steps: int,
    guidance_scale: float,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Denoises from pure noise along the family's own schedule.

    Args:
        family: predicts the velocity and knows the schedule's shift.
        transformer: as `components.open_transformer` yields it; its device is where the sampling happens.
        noise: [B, C, h, w], float32, as `initial_noise` draws it.
        inputs: of the instruction.
        negative_inputs: of the negative prompt with the same references; None switches guidance off.
        num_inference_steps: Euler steps, each one call of the transformer, two with guidance.
        guidance_scale: 1 switches guidance off.
        on_step: called after each step with the number of steps done and the current estimate of the clean latents
            [B, C, h, w]; what it raises ends the sampling.

    Returns:
        latents: [B, C, h, w], float32, on the transformer's device.
    """
    if guidance_scale <= 1:
        negative_inputs = None
    latents = noise.to(transformer.device, torch.float32)
    sigmas = sampling_sigmas(num_inference_steps, family.flow_shift(noise.shape)).to(latents.device)
    for step in range(num_inference_steps):
        sigma = sigmas[step]
        batch_sigmas = sigma.expand(latents.shape[0])
        velocity = family.predict(transformer, latents, batch_sigmas, inputs)
        if negative_inputs is not None:
            unguided = family.predict(transformer, latents, batch_sigmas, negative_inputs)
            velocity = unguided + guidance_scale * (velocity - unguided)
        if on_step is not None:
            on_step(step + 1, latents - sigma * velocity)
        latents = latents + (sigmas[step + 1] - sigma) * velocity
    return latents
