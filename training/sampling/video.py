"""Sampling clips: Euler steps and CFG-zero* on float32 latents; given first frames stay as they are, bit for bit.

Follows longcat_video/pipeline_longcat_video.py of meituan-longcat/LongCat-Video.

Legend: B batch, C channels, F frames, H W pixels, T latent frames, h w latent height and width, n condition frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, ModelError
from ..models.video.family import LongCatVideoFamily, VideoInputs
from ..models.video.latents import middle_frame

CONTINUED_FRAMES = 13
"""Last frames of a clip that its continuation begins with (official); 4 latent frames."""


@dataclass(frozen=True, kw_only=True)
class ZeroStarGuidance:
    """Classifier-free guidance away from a negative prediction that is first scaled to fit the other (CFG-zero*)."""

    inputs: VideoInputs
    """Of the negative prompt, with the same first frames."""
    scale: float
    """1 or less switches guidance off."""

    def apply(self, velocity: Tensor, negative_velocity: Tensor) -> Tensor:
        """Velocities [B, ...] of prompt and negative prompt -> the guided one; each sample has a fit of its own.

        All frames count in the fit, given ones too.
        """
        positive, negative = velocity.flatten(1), negative_velocity.flatten(1)
        fit = (positive * negative).sum(dim=1) / (negative.square().sum(dim=1) + 1e-8)
        fitted = fit.view(-1, *[1] * (velocity.ndim - 1)) * negative_velocity
        return fitted + self.scale * (velocity - fitted)


@torch.no_grad()
def sample_video(
    family: LongCatVideoFamily,
    transformer: Any,
    noise: Tensor,
    inputs: VideoInputs,
    sigmas: Tensor,
    guidance: ZeroStarGuidance | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Denoises from pure noise; the first frames are taken from `inputs` where it has some.

    Args:
        family: predicts the velocity.
        transformer: as `lora.transformer.open_transformer` yields it.
        noise: [B, C, T, h, w], float32, for all frames; see `image.initial_noise`.
        inputs: of the prompt; their device is where the sampling happens. With a cache of the condition frames
            (`VideoInputs.with_cache`) these are not computed anew at every step.
        sigmas: [steps + 1], float32, falling to 0; see video_schedule.py.
        guidance: None switches it off. It has to have a cache if `inputs` has one.
        on_step: called after each step with the number of steps done and the current estimate of the middle frame's
            clean latents [B, C, h, w]; what it raises ends the sampling.

    Returns:
        latents: [B, C, T, h, w], float32, on the inputs' device.

    Raises:
        ModelError: the given frames are not the same bits any more.
    """
    device = inputs.prompt_embeds.device
    latents, sigmas = noise.to(device, torch.float32), sigmas.to(device)
    given = 0 if inputs.cond_latents is None else inputs.cond_latents.shape[2]
    if given:
        latents = torch.cat([inputs.cond_latents, latents[:, :, given:]], dim=2)
    for step, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        start, denoised = latents[:, :, :given], latents[:, :, given:]
        velocity = _velocity(family, transformer, latents, sigma, inputs, guidance)[:, :, -denoised.shape[2] :]
        if on_step is not None:
            estimate = torch.cat([start, denoised - sigma * velocity], dim=2)
            on_step(step + 1, middle_frame(estimate))
        latents = torch.cat([start, denoised + (following - sigma) * velocity], dim=2)
    if given:
        _check_start(latents[:, :, :given], inputs.cond_latents)
    return latents


def last_frames(pixels: Tensor) -> Tensor:
    """pixels [B, 3, F, H, W] of a clip -> [B, 3, 13, H, W], what its continuation begins with.

    Raises:
        ConfigError: the clip is too short.
    """
    if pixels.shape[2] < CONTINUED_FRAMES:
        raise ConfigError(
            f"The clip has {pixels.shape[2]} frames; a continuation begins with the last {CONTINUED_FRAMES}. Give a"
            " longer clip, or its last frame as the start of an image-to-video sampling."
        )
    return pixels[:, :, -CONTINUED_FRAMES:]


def joined(pixels: Tensor, continuation: Tensor) -> Tensor:
    """Two clips [B, 3, F, H, W] as one; the second's first 13 frames are the first's last ones, shown once."""
    return torch.cat([pixels, continuation[:, :, CONTINUED_FRAMES:]], dim=2)


def with_shared_cache(
    transformer: Any, inputs: VideoInputs, guidance: ZeroStarGuidance | None
) -> tuple[VideoInputs, ZeroStarGuidance | None]:
    """Computes the condition frames once, for the prompt and the negative prompt together: they see neither."""
    inputs = inputs.with_cache(transformer)
    if guidance is None:
        return inputs, None
    negative = replace(guidance.inputs, cond_cache=inputs.cond_cache)
    return inputs, replace(guidance, inputs=negative)


def _velocity(
    family: LongCatVideoFamily,
    transformer: Any,
    latents: Tensor,
    sigma: Tensor,
    inputs: VideoInputs,
    guidance: ZeroStarGuidance | None,
) -> Tensor:
    """Guided velocity of `latents` [B, C, T, h, w]; with a cache, of the frames that are not in it."""
    if inputs.cond_cache is not None:
        latents = latents[:, :, inputs.cond_latents.shape[2] :]
    sigmas = sigma.expand(latents.shape[0])
    velocity = family.predict(transformer, latents, sigmas, inputs)
    if guidance is None or guidance.scale <= 1:
        return velocity
    return guidance.apply(velocity, family.predict(transformer, latents, sigmas, guidance.inputs))


def _check_start(start: Tensor, cond_latents: Tensor) -> None:
    """As bits, since 0.0 equals -0.0 and NaN does not equal itself."""
    changed = start.contiguous().view(torch.int32) != cond_latents.contiguous().view(torch.int32)
    if changed.any():
        raise ModelError(
            f"{int(changed.sum())} of {changed.numel()} numbers of the clip's start were changed while it was sampled;"
            " they must stay as they are. This is a fault of the program: please report it with the workflow."
        )
