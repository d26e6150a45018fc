"""From prompts, and a start frame or the end of another clip, to a clip; one loaded component at a time.

Legend: B batch, C channels (16), F frames, H W pixels, T latent frames, h w latent height and width (pixels / 8), n
condition frames, L text tokens, D embedding. `raw_latents` are as the VAE gives them, which is also how ComfyUI carries
latents between nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ..data.media import to_pixels
from ..errors import ConfigError
from ..events import Callbacks
from ..lora.transformer import open_transformer
from ..models.contract import Family
from ..models.flow import distilled_video_sigmas, video_sigmas
from ..models.registry import family_of
from ..models.video.latents import check_clip, denormalise
from ..settings.model import flavour_of
from ..settings.sampling import VideoSampleConfig
from ..weights.components import open_vae
from ..weights.source import component_config
from ..weights.spec import ModelSpec
from .euler import (
    ZeroStarGuidance,
    decode,
    initial_noise,
    sample_video,
    step_reporter,
    stop_if_asked,
    with_shared_cache,
)
from .prompts import Conditioning

CONTINUED_FRAMES = 13
"""Last frames of a clip that its continuation begins with (official); 4 latent frames."""


@dataclass(frozen=True, kw_only=True)
class ClipSample:
    """A sampled clip."""

    pixels: Tensor
    """[1, 3, F, H, W], -1..1, float32, on the CPU"""
    raw_latents: Tensor
    """[1, C, T, h, w], float32, on the CPU"""


def start_size(config: VideoSampleConfig, frame: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in px of a clip that starts with a frame of (width, height) px.

    The sides of `config`, swapped where the frame has the other orientation.
    """
    turned = (config.width - config.height) * (frame[0] - frame[1]) < 0
    return (config.height, config.width) if turned else (config.width, config.height)


def start_pixels(config: VideoSampleConfig, frame: Image) -> Tensor:
    """An RGB start frame -> pixels [1, 3, H, W] of `start_size`: resized to cover it and cropped, as in training."""
    return to_pixels(frame, start_size(config, frame.size))


def sample_clip(
    config: VideoSampleConfig,
    spec: ModelSpec,
    prompts: tuple[Conditioning, Conditioning],
    start: Tensor | None,
    device: torch.device,
    callbacks: Callbacks,
    preview: Callable[[Tensor], Image | None],
) -> ClipSample:
    """Samples one clip; VAE, transformer and VAE again are loaded one after another.

    Args:
        config: its width and height count where there is no start.
        spec: the model with its LoRAs.
        prompts: positive and negative; the latter is not used where there is no guidance.
        start: pixels of a start frame [1, 3, H, W] as `start_pixels` makes them, or of the end of another clip
            [1, 3, F, H, W] (`last_frames`); the clip begins with it and has its size. None: text-to-video.
        device: where the components run.
        callbacks: get every step, and are asked after each whether to stop.
        preview: a quick picture of (normalised) latents of the clip's middle [1, C, 1, h, w], or None.

    Raises:
        ConfigError: the model makes no clips, the conditioning does not fit it, or the start does not fit the clip.
        NonFiniteError: NaN or infinity came out.
    """
    _check_flavour(spec)
    _check_start(start, config.num_frames)
    transformer_config, vae_config = (component_config(spec, name, callbacks) for name in ("transformer", "vae"))
    _check_fit("positive", prompts[0], transformer_config)
    _check_fit("negative", prompts[1], transformer_config)
    family = family_of(spec.config.model_family)
    cond_latents = None if start is None else _encoded(family, spec, start, device, callbacks)
    sigmas = _sigmas(config)
    size = (config.width, config.height) if start is None else (start.shape[-1], start.shape[-2])
    # For all frames: given ones take nothing away from the others' noise.
    noise = initial_noise(family.latents_shape(vae_config, size, config.num_frames), config.seed)
    inputs, guidance = _inputs(config, family, noise, prompts, cond_latents, device)
    on_step = step_reporter(len(sigmas) - 1, callbacks, lambda frame: preview(frame.unsqueeze(2)))
    with open_transformer(spec, device, callbacks) as transformer:
        if start is not None and start.ndim == 5:
            # As released: a single start frame is computed along at each step, and counts in the fit of the guidance.
            inputs, guidance = with_shared_cache(transformer, inputs, guidance)
        latents = sample_video(family, transformer, noise, inputs, sigmas, guidance, on_step)
    with open_vae(spec, device, callbacks) as vae:
        pixels = decode(family, vae, latents)
    return ClipSample(pixels=pixels, raw_latents=denormalise(latents, vae_config).cpu())


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


def _encoded(family: Family, spec: ModelSpec, start: Tensor, device: torch.device, callbacks: Callbacks) -> Tensor:
    """Latents [1, C, n, h, w] of a start frame or of the end of a clip, on the CPU."""
    with open_vae(spec, device, callbacks) as vae:
        latents = family.encode_pixels(vae, start.to(device)).cpu()
    stop_if_asked(callbacks)
    return latents


def _sigmas(config: VideoSampleConfig) -> Tensor:
    return distilled_video_sigmas() if config.distilled else video_sigmas(config.num_inference_steps)


def _inputs(
    config: VideoSampleConfig,
    family: Family,
    noise: Tensor,
    prompts: tuple[Conditioning, Conditioning],
    cond_latents: Tensor | None,
    device: torch.device,
) -> tuple[Any, ZeroStarGuidance | None]:
    """`VideoInputs` of the prompt, and the guidance away from the negative one if there is any."""
    given = [] if cond_latents is None else [cond_latents]
    # Cloned: ComfyUI hands over inference tensors.
    inputs, negative = (
        family.prepare_inputs(noise.shape, each.prompt_embeds.clone().to(device), given) for each in prompts
    )
    if config.distilled or config.guidance_scale <= 1:
        return inputs, None
    return inputs, ZeroStarGuidance(inputs=negative, scale=config.guidance_scale)


def _check_flavour(spec: ModelSpec) -> None:
    config = spec.config
    if not flavour_of(config).draws_clips:
        raise ConfigError(
            f"model_family {config.model_family} draws pictures, not clips. Choose model_family longcat_video in"
            " Load LongCat, or use Sample T2I or Sample Edit."
        )


def _check_start(start: Tensor | None, num_frames: int) -> None:
    if start is None:
        return
    clip = start.unsqueeze(2) if start.ndim == 4 else start
    check_clip(clip)
    if clip.shape[2] >= num_frames:
        raise ConfigError(
            f"num_frames is {num_frames}, and {clip.shape[2]} of them are given by the start: nothing is left to"
            " sample. Ask for more frames."
        )


def _check_fit(name: str, conditioning: Conditioning, transformer: dict[str, Any]) -> None:
    if conditioning.raw_cond_latents is not None:
        raise ConfigError(
            f"{name} holds a reference picture; a clip is sampled from text, and its start frame goes into Sample I2V."
            " Make the conditioning with Encode LongCat Prompt."
        )
    width = transformer["caption_channels"]
    shape = tuple(conditioning.prompt_embeds.shape)
    if len(shape) != 3 or shape[0] != 1 or shape[2] != width:
        raise ConfigError(
            f"{name} has embeddings of shape {list(shape)}; this model takes [1, tokens, {width}]. Encode the prompt"
            " with Encode LongCat Prompt and the same model."
        )
