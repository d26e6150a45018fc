"""Sampling pictures: Euler steps and classifier-free guidance on float32 latents, the same for every image family.

Legend: B batch, C channels, h w latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.contract import Family, ModelInputs
from ..models.flow import image_sigmas
from ..models.image.latents import pack_latents, unpack_latents


def initial_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal noise, float32 on the CPU, so that a seed means the same picture on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance: away from what the model predicts for a negative prompt."""

    inputs: ModelInputs
    """Of the negative prompt, with the same references."""
    scale: float
    """1 or less switches guidance off."""
    renorm: bool = False
    """Whether a guided token may be no longer than the unguided one (diffusers: enable_cfg_renorm)."""

    def apply(self, velocity: Tensor, negative_velocity: Tensor) -> Tensor:
        """Velocities [B, C, h, w] of prompt and negative prompt -> the guided one."""
        guided = negative_velocity + self.scale * (velocity - negative_velocity)
        return _renormalised(guided, velocity) if self.renorm else guided


@torch.no_grad()
def sample_image(
    family: Family,
    transformer: Any,
    noise: Tensor,
    inputs: ModelInputs,
    num_inference_steps: int,
    guidance: Guidance | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Denoises from pure noise along the family's own schedule.

    Args:
        family: predicts the velocity and knows the schedule's shift.
        transformer: as `lora.transformer.open_transformer` yields it.
        noise: [B, C, h, w], float32, as `initial_noise` draws it.
        inputs: of the prompt; their device is where the sampling happens.
        num_inference_steps: Euler steps, each one call of the transformer, two with guidance.
        guidance: None switches it off.
        on_step: called after each step with the number of steps done and the current estimate of the clean latents
            [B, C, h, w]; what it raises ends the sampling.

    Returns:
        latents: [B, C, h, w], float32, on the inputs' device.
    """
    latents = noise.to(inputs.prompt_embeds.device, torch.float32)
    sigmas = image_sigmas(num_inference_steps, family.flow_shift(noise.shape)).to(latents.device)
    for step in range(num_inference_steps):
        sigma = sigmas[step]
        batch_sigmas = sigma.expand(latents.shape[0])
        velocity = family.predict(transformer, latents, batch_sigmas, inputs)
        if guidance is not None and guidance.scale > 1:
            negative_velocity = family.predict(transformer, latents, batch_sigmas, guidance.inputs)
            velocity = guidance.apply(velocity, negative_velocity)
        if on_step is not None:
            on_step(step + 1, latents - sigma * velocity)
        latents = latents + (sigmas[step + 1] - sigma) * velocity
    return latents


def _renormalised(guided: Tensor, velocity: Tensor) -> Tensor:
    """`guided` [B, C, h, w], each packed token shortened to the length that it has in `velocity`, never lengthened.

    Follows diffusers: pipeline_longcat_image.py with cfg_renorm_min 0.
    """
    tokens = pack_latents(guided)
    lengths = pack_latents(velocity).norm(dim=-1, keepdim=True)
    scale = (lengths / (tokens.norm(dim=-1, keepdim=True) + 1e-8)).clamp(max=1)
    return unpack_latents(tokens * scale, guided.shape[-2], guided.shape[-1])
