"""An edit from a picture and an instruction to an edited picture, one loaded component at a time.

Legend: B batch, C channels, h w latent height and width (pixels / 8), H W pixels, L text tokens, D embedding.
`raw_latents` are as the VAE gives them, which is also how ComfyUI carries latents between nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import PIXELS_PER_TOKEN, SampleConfig
from ..errors import ConfigError, StoppedByUserError
from ..loop.events import Callbacks, StageProgress
from ..models.family import Family, ModelInputs, family_of
from ..models.handle import ModelHandle

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

EDIT_AREA = 1024 * 1024
"""Px; area that the released edit pipeline brings every reference to."""

PIXELS_PER_LATENT = 8
PATCH_AREA = 4
"""A token holds 2 x 2 latent pixels, so the transformer's in_channels are 4 C."""


@dataclass(frozen=True, kw_only=True)
class EditConditioning:
    """One encoded prompt and the reference it is about."""

    prompt_embeds: Tensor
    """[1, L, D]"""
    raw_ref_latents: Tensor
    """[1, C, h, w]"""


@dataclass(frozen=True, kw_only=True)
class EditSample:
    """An edited picture."""

    pixels: Tensor
    """[1, 3, H, W], -1..1, float32, on the CPU"""
    raw_latents: Tensor
    """[1, C, h, w], float32, on the CPU"""


def edit_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) in px of about one megapixel in the aspect of `width` x `height`, each rounded up to 16.

    Follows diffusers: pipeline_longcat_image_edit.py calculate_dimensions.
    """
    ratio = width / height
    wide = math.sqrt(EDIT_AREA * ratio)
    return _round_up(wide), _round_up(wide / ratio)


def encode_edit(
    handle: ModelHandle,
    reference: Image,
    prompts: Sequence[str],
    size: SampleConfig,
    device: torch.device,
    callbacks: Callbacks,
) -> list[EditConditioning]:
    """Encodes prompts about one reference; the text encoder is released before the VAE is loaded.

    Args:
        handle: the model.
        reference: RGB; cover-resized and centre-cropped to `size`, as the trainer does.
        prompts: each may be empty.
        size: width and height in px; 0 for both: `edit_size` of the reference.
        device: where the components run.
        callbacks: asked between the two components whether to stop.

    Returns:
        One conditioning a prompt, on the CPU; all with the same `raw_ref_latents`.

    Raises:
        ModelError: the model's folder is missing or of another family.
        StoppedByUserError: asked to stop.
    """
    from ..data.media import to_pixels
    from ..models.components import open_text_encoder, open_vae
    from ..models.latents import denormalise

    family = family_of(handle.config.model_family)
    width_height = (size.width, size.height) if size.width else edit_size(*reference.size)
    pixels = to_pixels(reference, width_height).to(device)
    with open_text_encoder(handle, device, callbacks) as text_encoder:
        prompt_embeds = [family.encode_prompt(text_encoder, prompt, [pixels]).cpu() for prompt in prompts]
    _stop_if_asked(callbacks)
    with open_vae(handle, device, callbacks) as vae:
        raw_ref_latents = denormalise(family.encode_pixels(vae, pixels), vae.config).cpu()
    return [EditConditioning(prompt_embeds=embeds, raw_ref_latents=raw_ref_latents) for embeds in prompt_embeds]


def sample_edit(
    config: SampleConfig,
    handle: ModelHandle,
    positive: EditConditioning,
    negative: EditConditioning,
    device: torch.device,
    callbacks: Callbacks,
    preview: Callable[[Tensor], Image | None],
) -> EditSample:
    """Samples one edit; the transformer is released before the VAE is loaded.

    Args:
        config: a size of 0 is that of the reference.
        handle: the model with its LoRAs.
        positive: the instruction.
        negative: not used where `guidance_scale` is 1.
        device: where the components run.
        callbacks: told of every step, asked after each whether to stop.
        preview: a quick picture of (normalised) latents [1, C, h, w], or None.

    Raises:
        ConfigError: the conditioning does not fit the model.
        ModelError: the model's folder is missing or of another family.
        StoppedByUserError: asked to stop.
    """
    from ..models.components import open_transformer, open_vae
    from ..models.latents import denormalise
    from ..models.source import component_config
    from .image import initial_noise, sample_image

    transformer_config, vae_config = (component_config(handle, name, callbacks) for name in ("transformer", "vae"))
    for name, conditioning in (("positive", positive), ("negative", negative)):
        _check_fit(name, conditioning, transformer_config)
    family = family_of(handle.config.model_family)
    noise = initial_noise(_latents_shape(config, positive.raw_ref_latents), config.seed)
    inputs, negative_inputs = (_inputs(family, noise, each, vae_config, device) for each in (positive, negative))
    steps, guidance = config.num_inference_steps, config.guidance_scale
    on_step = _reporter(steps, callbacks, preview)
    with open_transformer(handle, device, callbacks) as transformer:
        latents = sample_image(family, transformer, noise, inputs, negative_inputs, steps, guidance, on_step)
    with open_vae(handle, device, callbacks) as vae:
        pixels = family.decode(vae, latents)
    return EditSample(pixels=pixels.cpu(), raw_latents=denormalise(latents, vae_config).cpu())


def _reporter(
    total: int, callbacks: Callbacks, preview: Callable[[Tensor], Image | None]
) -> Callable[[int, Tensor], None]:
    def on_step(done: int, denoised: Tensor) -> None:
        callbacks.on_event(StageProgress(stage="sampling", done=done, total=total, preview=preview(denoised)))
        _stop_if_asked(callbacks)

    return on_step


def _inputs(
    family: Family, noise: Tensor, conditioning: EditConditioning, vae_config: dict[str, Any], device: torch.device
) -> ModelInputs:
    from ..models.latents import normalise

    # Cloned: tensors made in inference mode may not take part in later computations outside it.
    raw_ref_latents = conditioning.raw_ref_latents.clone().float()
    ref_latents = normalise(raw_ref_latents, vae_config).to(device)
    return family.prepare_inputs(noise.shape, conditioning.prompt_embeds.clone().to(device), [ref_latents])


def _latents_shape(config: SampleConfig, raw_ref_latents: Tensor) -> tuple[int, int, int, int]:
    _, channels, height, width = raw_ref_latents.shape
    if config.width:
        height, width = config.height // PIXELS_PER_LATENT, config.width // PIXELS_PER_LATENT
    return 1, channels, height, width


def _check_fit(name: str, conditioning: EditConditioning, transformer: dict[str, Any]) -> None:
    width = transformer["joint_attention_dim"]
    embeds = tuple(conditioning.prompt_embeds.shape)
    if len(embeds) != 3 or embeds[0] != 1 or embeds[2] != width:
        raise ConfigError(
            f"{name} has embeddings of shape {list(embeds)}; this model takes [1, tokens, {width}]. Encode the prompt"
            " with EncodeEditPrompt and the same model."
        )
    channels = transformer["in_channels"] // PATCH_AREA
    shape = tuple(conditioning.raw_ref_latents.shape)
    if len(shape) != 4 or shape[:2] != (1, channels) or shape[2] % 2 or shape[3] % 2:
        raise ConfigError(
            f"{name} has reference latents of shape {list(shape)}; this model takes [1, {channels}, height, width]"
            " with even sides. Encode the reference with EncodeEditPrompt and the same model."
        )


def _stop_if_asked(callbacks: Callbacks) -> None:
    if callbacks.should_stop():
        raise StoppedByUserError("Sampling was stopped.")


def _round_up(side: float) -> int:
    return math.ceil(side / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN
