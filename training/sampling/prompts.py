"""From prompts, and for an edit its reference, to what is sampled with; one loaded component at a time.

Legend: C channels, h w latent height and width, H W pixels, L text tokens, D embedding. `raw_latents` are as the VAE
gives them, which is also how ComfyUI carries latents between nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor

from ..data.media import to_pixels
from ..errors import ConfigError
from ..events import Callbacks
from ..models.image.latents import denormalise
from ..models.registry import family_of
from ..settings.flavours import EDIT, TEXT_TO_IMAGE, names_of
from ..settings.geometry import MEGAPIXEL_SIDE, PIXELS_PER_TOKEN
from ..settings.model import flavour_of
from ..settings.sampling import SampleConfig
from ..weights.components import open_text_encoder, open_vae
from ..weights.spec import ModelSpec
from .euler import stop_if_asked

EDIT_AREA = MEGAPIXEL_SIDE**2
"""Px; area that the released edit pipeline brings every reference to."""


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """One encoded prompt, and for an edit the reference it is about."""

    prompt_embeds: Tensor
    """[1, L, D]"""
    raw_cond_latents: Tensor | None = None
    """[1, C, h, w]"""


def encode_prompts(
    spec: ModelSpec, prompts: Sequence[str], device: torch.device, callbacks: Callbacks
) -> list[Conditioning]:
    """Encodes descriptions of pictures or clips, in Chinese or English; only the text encoder is loaded.

    The prompt is taken as it is written: the rewriting that the released pipeline does by default is not done.

    Returns:
        One conditioning per prompt, on the CPU, [1, 512, D] each, whatever its length.
    """
    check_task(spec, edits=False)
    return _encode(spec, prompts, None, device, callbacks)


def encode_edit(
    spec: ModelSpec,
    reference: Image,
    prompts: Sequence[str],
    size: SampleConfig,
    device: torch.device,
    callbacks: Callbacks,
) -> list[Conditioning]:
    """Encodes prompts about one reference; the text encoder is released before the VAE is loaded.

    Args:
        spec: the model.
        reference: RGB; cover-resized and centre-cropped to `size`, as the trainer does.
        prompts: each may be empty.
        size: width and height in px; 0 for both: `edit_size` of the reference.
        device: where the components run.
        callbacks: asked between the two components whether to stop.

    Returns:
        One conditioning per prompt, on the CPU; all with the same `raw_cond_latents`.
    """
    check_task(spec, edits=True)
    width_height = (size.width, size.height) if size.width else edit_size(*reference.size)
    return _encode(spec, prompts, to_pixels(reference, width_height), device, callbacks)


def edit_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) in px of about one megapixel in the aspect of `width` x `height`, each rounded up to 16.

    Follows diffusers: pipeline_longcat_image_edit.py calculate_dimensions.
    """
    ratio = width / height
    wide = math.sqrt(EDIT_AREA * ratio)
    return _round_up(wide), _round_up(wide / ratio)


def check_task(spec: ModelSpec, edits: bool) -> None:
    """
    Raises:
        ConfigError: the flavour does not edit, or does nothing else.
    """
    flavour, name = flavour_of(spec.config), spec.config.model_flavour
    if edits and not flavour.needs_reference:
        raise ConfigError(
            f"model_flavour {name} draws from text and cannot edit. Choose {names_of(EDIT)} in Load LongCat, or use"
            " Encode LongCat Prompt and Sample T2I."
        )
    if flavour.needs_reference and not edits:
        raise ConfigError(
            f"model_flavour {name} edits a reference picture. Choose {names_of(TEXT_TO_IMAGE)} in Load LongCat, or use"
            " Encode Edit Prompt and Sample Edit."
        )


def _encode(
    spec: ModelSpec, prompts: Sequence[str], pixels: Tensor | None, device: torch.device, callbacks: Callbacks
) -> list[Conditioning]:
    """One conditioning per prompt, on the CPU; the text encoder is released before the VAE is loaded.

    Args:
        spec: the model.
        prompts: each may be empty.
        pixels: [1, 3, H, W], the reference of all of them; None: text-to-image, the VAE is not needed.
        device: where the components run.
        callbacks: asked between the two components whether to stop.
    """
    family = family_of(spec.config.model_family)
    references = [] if pixels is None else [pixels.to(device)]
    with open_text_encoder(spec, device, callbacks) as text_encoder:
        prompt_embeds = [family.encode_prompt(text_encoder, prompt, references).cpu() for prompt in prompts]
    stop_if_asked(callbacks)
    raw_cond_latents = None
    if references:
        with open_vae(spec, device, callbacks) as vae:
            raw_cond_latents = denormalise(family.encode_pixels(vae, references[0]), vae.config).cpu()
    return [Conditioning(prompt_embeds=embeds, raw_cond_latents=raw_cond_latents) for embeds in prompt_embeds]


def _round_up(side: float) -> int:
    return math.ceil(side / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN
