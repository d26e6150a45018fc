"""Pure functions on latents: spaces, packing, position ids. One owner for training and sampling.

Legend: B batch, C channels, h w latent height and width (pixels / 8, both even), S packed tokens = h*w/4, L text
tokens.
`raw_latents` are as the VAE gives them; `latents` are normalised; `packed` latents are what the transformer reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...settings.geometry import PATCH, check_sides, size_of_latents

TEXT, TARGET, REFERENCE = 0, 1, 2
"""First axis of the position ids: which kind of token (follows diffusers: pipeline_longcat_image_edit.py)."""


def normalise(raw_latents: Tensor, vae_config: Mapping[str, Any]) -> Tensor:
    """raw_latents [B, C, h, w] -> latents of the same shape: `(raw - shift_factor) * scaling_factor`.

    Args:
        raw_latents: as the VAE's posterior gives them, and as ComfyUI's LATENT carries them.
        vae_config: `vae.config`, or `vae/config.json` as parsed.
    """
    return (raw_latents - vae_config["shift_factor"]) * vae_config["scaling_factor"]


def denormalise(latents: Tensor, vae_config: Mapping[str, Any]) -> Tensor:
    """latents [B, C, h, w] -> raw_latents of the same shape, ready to decode; the inverse of `normalise`."""
    return latents / vae_config["scaling_factor"] + vae_config["shift_factor"]


def pack_latents(latents: Tensor) -> Tensor:
    """latents [B, C, h, w] -> packed [B, h*w/4, 4*C], each token in the order (channel, row, column).

    Follows diffusers: pipeline_longcat_image_edit.py _pack_latents.

    Raises:
        ConfigError: h or w is odd.
    """
    batch, channels, height, width = latents.shape
    check_sides("The picture", size_of_latents(latents.shape))
    rows, columns = height // PATCH, width // PATCH
    patches = latents.reshape(batch, channels, rows, PATCH, columns, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * PATCH * PATCH)


def unpack_latents(packed: Tensor, height: int, width: int) -> Tensor:
    """packed [B, h*w/4, 4*C] -> latents [B, C, h, w]; `height`, `width` are h, w; undoes `pack_latents`."""
    batch, _, features = packed.shape
    channels = features // (PATCH * PATCH)
    patches = packed.reshape(batch, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def text_position_ids(length: int) -> Tensor:
    """-> [L, 3] float32, token i at (0, i, i)."""
    ids = torch.arange(length, dtype=torch.float32)
    return torch.stack([torch.full_like(ids, TEXT), ids, ids], dim=-1)


def image_position_ids(kind: int, height: int, width: int, text_length: int) -> Tensor:
    """-> [h*w/4, 3] float32, the token in row r and column c at (kind, L + r, L + c).

    float32 holds these small whole numbers exactly, and MPS has no float64.

    Args:
        kind: TARGET or REFERENCE.
        height: h of the latents.
        width: w of the latents.
        text_length: L, so that no picture token shares a position with a text token.
    """
    rows = torch.arange(height // PATCH, dtype=torch.float32) + text_length
    columns = torch.arange(width // PATCH, dtype=torch.float32) + text_length
    row_ids, column_ids = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.full_like(row_ids, kind), row_ids, column_ids], dim=-1).reshape(-1, 3)
