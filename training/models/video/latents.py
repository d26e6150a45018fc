"""Clips and their latents: which sizes there are, and the space that the transformer works in.

Legend: B batch, C channels (16), F frames, H W pixels, T latent frames, h w latent height and width.
`raw_latents` are as the VAE gives them; `latents` are normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...settings.geometry import check_sides, latent_frames


def check_clip(pixels: Tensor) -> None:
    """Refuses pixels [B, 3, F, H, W] that the VAE would shorten or the transformer could not divide.

    Raises:
        ConfigError: naming the number of frames or the size.
    """
    latent_frames(pixels.shape[2])
    check_sides("The clip", (pixels.shape[-1], pixels.shape[-2]))


def normalise(raw_latents: Tensor, vae_config: Mapping[str, Any]) -> Tensor:
    """raw_latents [B, C, T, h, w] -> latents of the same shape: each channel less its mean, over its deviation.

    Args:
        raw_latents: as the VAE's posterior gives them, and as ComfyUI's LATENT carries them.
        vae_config: `vae.config`, or `vae/config.json` as parsed.
    """
    mean, deviation = _statistics(raw_latents, vae_config)
    return (raw_latents - mean) / deviation


def denormalise(latents: Tensor, vae_config: Mapping[str, Any]) -> Tensor:
    """latents [B, C, T, h, w] -> raw_latents of the same shape, ready to decode; the inverse of `normalise`."""
    mean, deviation = _statistics(latents, vae_config)
    return latents * deviation + mean


def middle_frame(latents: Tensor) -> Tensor:
    """latents [B, C, T, h, w] -> [B, C, h, w] of the frame that shows best what a clip is about."""
    return latents[:, :, latents.shape[2] // 2]


def _statistics(like: Tensor, vae_config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    mean, deviation = (
        torch.tensor(vae_config[name], dtype=like.dtype, device=like.device).view(1, -1, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    return mean, deviation
