"""The Euler steps of both families on float32 latents, and their guidance: plain for pictures, CFG-zero* for clips.

Follows diffusers: pipeline_longcat_image.py; longcat_video/pipeline_longcat_video.py of meituan-longcat/LongCat-Video.

Legend: B batch, C channels, T latent frames, h w latent height and width, n latent frames that are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ..errors import ModelError, NonFiniteError, StoppedByUserError
from ..events import Callbacks, StageProgress
from ..models.contract import Family, ModelInputs
from ..models.flow import image_sigmas
from ..models.image.latents import pack_latents, unpack_latents
from ..models.video.family import LongCatVideoFamily, VideoInputs
from ..models.video.latents import middle_frame


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

    Raises:
        NonFiniteError: the model gives NaN or infinity.
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
        _check_finite(velocity, f"step {step + 1} of {num_inference_steps}")
        if on_step is not None:
            on_step(step + 1, latents - sigma * velocity)
        latents = latents + (sigmas[step + 1] - sigma) * velocity
    return latents


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
            (`VideoInputs.with_cache`) these are computed once, not at every step.
        sigmas: [steps + 1], float32, falling to 0; see `flow.video_sigmas`.
        guidance: None switches it off. It has to have a cache if `inputs` has one.
        on_step: called after each step with the number of steps done and the current estimate of the middle frame's
            clean latents [B, C, h, w]; what it raises ends the sampling.

    Returns:
        latents: [B, C, T, h, w], float32, on the inputs' device.

    Raises:
        NonFiniteError: the model gives NaN or infinity.
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
        _check_finite(velocity, f"step {step + 1} of {len(sigmas) - 1}")
        if on_step is not None:
            estimate = torch.cat([start, denoised - sigma * velocity], dim=2)
            on_step(step + 1, middle_frame(estimate))
        latents = torch.cat([start, denoised + (following - sigma) * velocity], dim=2)
    if given:
        _check_start(latents[:, :, :given], inputs.cond_latents)
    return latents


def with_shared_cache(
    transformer: Any, inputs: VideoInputs, guidance: ZeroStarGuidance | None
) -> tuple[VideoInputs, ZeroStarGuidance | None]:
    """Computes the condition frames once, for the prompt and the negative prompt together: they see neither."""
    inputs = inputs.with_cache(transformer)
    if guidance is None:
        return inputs, None
    negative = replace(guidance.inputs, cond_cache=inputs.cond_cache)
    return inputs, replace(guidance, inputs=negative)


def step_reporter(
    total: int, callbacks: Callbacks, preview: Callable[[Tensor], Image | None]
) -> Callable[[int, Tensor], None]:
    def on_step(done: int, denoised: Tensor) -> None:
        callbacks.on_event(StageProgress(stage="sampling", done=done, total=total, preview=preview(denoised)))
        stop_if_asked(callbacks)

    return on_step


def stop_if_asked(callbacks: Callbacks) -> None:
    if callbacks.should_stop():
        raise StoppedByUserError("Sampling was stopped.")


def decode(family: Family, vae: Any, latents: Tensor) -> Tensor:
    """Pixels on the CPU of what was sampled; see `Family.decode`.

    Raises:
        NonFiniteError: the VAE gives NaN or infinity.
    """
    pixels = family.decode(vae, latents).cpu()
    _check_finite(pixels, "the VAE")
    return pixels


def _check_finite(values: Tensor, where: str) -> None:
    if not values.isfinite().all():
        raise NonFiniteError(
            f"Sampling came to NaN or infinity at {where}, which would be a black picture. If a LoRA is used, lower its"
            " strength (Load LongCat LoRA) or take it out: its training may have gone wrong. Otherwise choose"
            " base_model_precision bf16 (Load LongCat), and encode the prompt again."
        )


def _renormalised(guided: Tensor, velocity: Tensor) -> Tensor:
    """`guided` [B, C, h, w], each packed token shortened to the length that it has in `velocity`, never lengthened.

    Follows diffusers: pipeline_longcat_image.py with cfg_renorm_min 0.
    """
    tokens = pack_latents(guided)
    lengths = pack_latents(velocity).norm(dim=-1, keepdim=True)
    scale = (lengths / (tokens.norm(dim=-1, keepdim=True) + 1e-8)).clamp(max=1)
    return unpack_latents(tokens * scale, guided.shape[-2], guided.shape[-1])


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
