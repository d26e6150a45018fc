"""One forward pass of the training: a pure function of model, batch and random numbers.

Legend of shapes: B batch, C channels, h w latent height and width, L text tokens, D embedding. A clip's latents are
[B, C, T, h, w] with T latent frames, wherever [B, C, h, w] is said here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.contract import Family
from ..models.flow import add_noise, draw_sigmas, training_shift, velocity_target
from ..settings.run import TrainingOptions
from .batches import Batch


@dataclass(frozen=True, kw_only=True)
class Draws:
    """All randomness of one forward pass, on the CPU, so that a run is the same on every device."""

    noise: Tensor
    """[B, C, h, w], float32"""
    sigmas: Tensor
    """[B], float32, in 0..1"""
    dropped: Tensor
    """[B], bool: trained with the empty instruction"""
    start_given: bool = True
    """Whether clips that have a start are given it; else they are trained as text-to-video."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    prediction: Tensor
    """[B, C, h, w], float32: predicted velocity"""
    target: Tensor
    """[B, C, h, w], float32: wanted velocity"""
    loss: Tensor
    """Scalar, float32: mean squared difference of the two"""


def draw(family: Family, options: TrainingOptions, latents_shape: Sequence[int], generator: torch.Generator) -> Draws:
    """The random numbers for one batch of latents [B, C, h, w]; always the same count, whatever the options."""
    batch_size, shift = latents_shape[0], training_shift(options, family, latents_shape)
    return Draws(
        noise=torch.randn(tuple(latents_shape), generator=generator, dtype=torch.float32),
        sigmas=draw_sigmas(batch_size, shift, generator, family.sigma_distribution),
        dropped=torch.rand(batch_size, generator=generator) < options.caption_dropout_probability,
        start_given=_start_given(options, latents_shape, generator),
    )


def _start_given(options: TrainingOptions, latents_shape: Sequence[int], generator: torch.Generator) -> bool:
    if len(latents_shape) < 5:
        # Pictures have no start; a reference is never taken away.
        return True
    return bool(torch.rand(1, generator=generator) < options.first_frame_probability)


def forward_step(family: Family, transformer: Any, batch: Batch, draws: Draws) -> StepResult:
    """Predicts the velocity at the noisy latents and compares it with the true one.

    A clip's start is given clean and is not in the loss. A dropped sample keeps its reference: it gets the embeddings
    of the empty instruction with that reference (official trainers), which is also what guidance subtracts when
    sampling.
    """
    device = transformer.device
    latents, noise, sigmas = (tensor.to(device) for tensor in (batch.latents, draws.noise, draws.sigmas))
    prompt_embeds = torch.where(draws.dropped.view(-1, 1, 1), batch.empty_prompt_embeds, batch.prompt_embeds)
    cond_latents = [given.to(device) for given in batch.cond_latents] if draws.start_given else []
    inputs = family.prepare_inputs(latents.shape, prompt_embeds.to(device), cond_latents)
    prediction = family.predict(transformer, add_noise(latents, noise, sigmas), sigmas, inputs)
    target = velocity_target(latents, noise)
    learned = slice(inputs.num_cond_latents, None)
    loss = torch.nn.functional.mse_loss(prediction[:, :, learned].float(), target[:, :, learned].float())
    return StepResult(prediction=prediction, target=target, loss=loss)
