"""Text-to-image and edits: from prompts to a picture, one loaded component at a time.

Legend: B batch, C channels, h w latent height and width (pixels / 8), H W pixels, L text tokens, D embedding.
`raw_latents` are as the VAE gives them, which is also how ComfyUI carries latents between nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ..errors import ConfigError
from ..events import Callbacks, WarningRaised
from ..lora.transformer import open_transformer
from ..models.contract import Family, ModelInputs
from ..models.image.latents import denormalise, normalise
from ..models.registry import family_of
from ..settings.flavours import Flavour
from ..settings.geometry import LATENTS_PER_TOKEN, PATCH, size_of_latents
from ..settings.model import flavour_of
from ..settings.sampling import SampleConfig, TextToImageConfig
from ..weights.components import open_vae
from ..weights.source import component_config
from ..weights.spec import ModelSpec
from .euler import Guidance, decode, initial_noise, sample_image, step_reporter
from .prompts import Conditioning, check_task


@dataclass(frozen=True, kw_only=True)
class PictureSample:
    """A sampled picture."""

    pixels: Tensor
    """[1, 3, H, W], -1..1, float32, on the CPU"""
    raw_latents: Tensor
    """[1, C, h, w], float32, on the CPU"""


def sample_edit(
    config: SampleConfig,
    spec: ModelSpec,
    prompts: tuple[Conditioning, Conditioning],
    device: torch.device,
    callbacks: Callbacks,
    preview: Callable[[Tensor], Image | None],
) -> PictureSample:
    """Samples one edit as `_sample_picture` does; without renormalised guidance, which the released pipeline lacks."""
    check_task(spec, edits=True)
    return _sample_picture(config, spec, prompts, False, device, callbacks, preview)


def sample_t2i(
    config: TextToImageConfig,
    spec: ModelSpec,
    prompts: tuple[Conditioning, Conditioning],
    device: torch.device,
    callbacks: Callbacks,
    preview: Callable[[Tensor], Image | None],
) -> PictureSample:
    """Samples one picture from text as `_sample_picture` does.

    Raises:
        ConfigError: the model draws clips.
    """
    check_task(spec, edits=False)
    if flavour_of(spec.config).draws_clips:
        raise ConfigError(
            f"model_family {spec.config.model_family} draws clips. Use Sample T2V or Sample I2V, or choose"
            " model_family longcat_image in Load LongCat."
        )
    return _sample_picture(config, spec, prompts, config.cfg_renorm, device, callbacks, preview)


def _sample_picture(
    config: SampleConfig,
    spec: ModelSpec,
    prompts: tuple[Conditioning, Conditioning],
    cfg_renorm: bool,
    device: torch.device,
    callbacks: Callbacks,
    preview: Callable[[Tensor], Image | None],
) -> PictureSample:
    """Samples one picture; the transformer is released before the VAE is loaded.

    Args:
        config: a size of 0 is that of the reference.
        spec: the model with its LoRAs.
        prompts: positive and negative; the latter is not used where `guidance_scale` is 1.
        cfg_renorm: see `Guidance.renorm`.
        device: where the components run.
        callbacks: get every step, and are asked after each whether to stop.
        preview: a quick picture of (normalised) latents [1, C, h, w], or None.

    Raises:
        NonFiniteError: NaN or infinity came out.
    """
    flavour = flavour_of(spec.config)
    for name, conditioning in zip(("positive", "negative"), prompts, strict=True):
        _check_reference(name, conditioning, flavour)
    transformer_config, vae_config = (component_config(spec, name, callbacks) for name in ("transformer", "vae"))
    for name, conditioning in zip(("positive", "negative"), prompts, strict=True):
        _check_fit(name, conditioning, transformer_config)
    _warn_of_guidance(config, spec, callbacks)
    family = family_of(spec.config.model_family)
    size = (config.width, config.height) if config.width else size_of_latents(prompts[0].raw_cond_latents.shape)
    noise = initial_noise(family.latents_shape(vae_config, size, frames=1), config.seed)
    inputs, negative_inputs = (_inputs(family, noise, each, vae_config, device) for each in prompts)
    guidance = Guidance(inputs=negative_inputs, scale=config.guidance_scale, renorm=cfg_renorm)
    on_step = step_reporter(config.num_inference_steps, callbacks, preview)
    with open_transformer(spec, device, callbacks) as transformer:
        latents = sample_image(family, transformer, noise, inputs, config.num_inference_steps, guidance, on_step)
    with open_vae(spec, device, callbacks) as vae:
        pixels = decode(family, vae, latents)
    return PictureSample(pixels=pixels, raw_latents=denormalise(latents, vae_config).cpu())


def _inputs(
    family: Family, noise: Tensor, conditioning: Conditioning, vae_config: dict[str, Any], device: torch.device
) -> ModelInputs:
    cond_latents = []
    if conditioning.raw_cond_latents is not None:
        # Cloned: tensors made in inference mode may not take part in later computations outside it.
        raw_cond_latents = conditioning.raw_cond_latents.clone().float()
        cond_latents = [normalise(raw_cond_latents, vae_config).to(device)]
    return family.prepare_inputs(noise.shape, conditioning.prompt_embeds.clone().to(device), cond_latents)


def _check_reference(name: str, conditioning: Conditioning, flavour: Flavour) -> None:
    if flavour.needs_reference and conditioning.raw_cond_latents is None:
        raise ConfigError(
            f"{name} holds 0 reference pictures; an edit needs exactly one. Make it with Encode Edit Prompt and wire"
            " the picture into its reference input."
        )
    if not flavour.needs_reference and conditioning.raw_cond_latents is not None:
        raise ConfigError(
            f"{name} holds a reference picture; text-to-image takes none. Make it with Encode LongCat Prompt, or choose"
            " an edit flavour and Sample Edit."
        )


def _check_fit(name: str, conditioning: Conditioning, transformer: dict[str, Any]) -> None:
    raw_cond_latents = conditioning.raw_cond_latents
    encoder = "Encode LongCat Prompt" if raw_cond_latents is None else "Encode Edit Prompt"
    width = transformer["joint_attention_dim"]
    embeds = tuple(conditioning.prompt_embeds.shape)
    if len(embeds) != 3 or embeds[0] != 1 or embeds[2] != width:
        raise ConfigError(
            f"{name} has embeddings of shape {list(embeds)}; this model takes [1, tokens, {width}]. Encode the prompt"
            f" with {encoder} and the same model."
        )
    if raw_cond_latents is None:
        return
    channels = transformer["in_channels"] // LATENTS_PER_TOKEN
    shape = tuple(raw_cond_latents.shape)
    if len(shape) != 4 or shape[:2] != (1, channels) or shape[2] % PATCH or shape[3] % PATCH:
        raise ConfigError(
            f"{name} has reference latents of shape {list(shape)}; this model takes [1, {channels}, height, width]"
            f" with even sides. Encode the reference with {encoder} and the same model."
        )


def _warn_of_guidance(config: SampleConfig, spec: ModelSpec, callbacks: Callbacks) -> None:
    steps = flavour_of(spec.config).distilled_steps
    if steps and config.guidance_scale > 1:
        message = (
            f"model_flavour {spec.config.model_flavour} was distilled to draw without guidance, in {steps} steps;"
            f" guidance_scale is {config.guidance_scale}. Set it to 1: that is what the model was made for, and it is"
            " twice as fast."
        )
        callbacks.on_event(WarningRaised(message=message))
