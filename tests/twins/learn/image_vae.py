"""Trains the autoencoder that both image twins share.

Legend: N pictures, S side in px.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from comfyui_longcat.training.tiny.classifier import psnr
from comfyui_longcat.training.tiny.edits import add_border
from comfyui_longcat.training.tiny.world import SIDE, choose, distances, draw, looks, paint, place_scenes
from torch import Generator, Tensor, nn

from .training import Log, train

CONFIG = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 32, 48, 48),
    "layers_per_block": 1,
    # Groups of few channels would wipe out flat colours.
    "norm_num_groups": 1,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}

SEED = 1
STEPS = 3400
LEARNING_RATE = 2e-3
CROP, CROP_BATCH, CROP_SHARE = 32, 32, 0.6
WHOLE_BATCH = 10

GAIN = 3**0.5
"""torch starts a convolution at variance 1 / (3 inputs); with this gain a signal keeps its size."""


def train_image_vae(folder: Path, log: Log, steps: int = STEPS) -> dict[str, Any]:
    """Trains from nothing and writes `folder`/vae in bf16.

    Returns:
        The record: seed, steps, CPU seconds, and PSNR (dB) on drawings that were never trained on.
    """
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    vae = build_vae().to(memory_format=torch.channels_last)
    unseen = unseen_drawings()
    vae, seconds = train(
        vae,
        _losses(vae, generator),
        steps,
        LEARNING_RATE,
        log,
        report=lambda average, step: f"psnr {psnr(_there_and_back(average, unseen), unseen).mean():.1f} dB",
    )
    vae = vae.to(torch.bfloat16)
    _set_statistics(vae)
    vae.save_pretrained(folder / "vae")
    scores = psnr(_there_and_back(vae.float(), unseen), unseen)
    return {
        "seed": SEED,
        "steps": steps,
        "cpu_seconds": round(seconds),
        "psnr_mean": round(scores.mean().item(), 1),
        "psnr_min": round(scores.min().item(), 1),
    }


def build_vae() -> nn.Module:
    """The untrained AutoencoderKL: every residual branch starts at nothing, so that signals pass from end to end."""
    from diffusers import AutoencoderKL
    from diffusers.models.resnet import ResnetBlock2D

    vae = AutoencoderKL(**CONFIG)
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(GAIN)
    for name, module in vae.named_modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
        if name.endswith("to_out.0"):
            nn.init.zeros_(module.weight)
    return vae


def _losses(vae: nn.Module, generator: Generator) -> Iterator[Tensor]:
    while True:
        whole = torch.rand((), generator=generator) > CROP_SHARE
        pixels = _draw_varied(WHOLE_BATCH if whole else CROP_BATCH, generator)
        if not whole:
            pixels = _crop(pixels, generator)
        latents = vae.encode(pixels).latent_dist.mode()
        # Kept near the size of noise, so that scale and shift are harmless numbers.
        yield F.mse_loss(vae.decode(latents).sample, pixels) + 1e-4 * latents.square().mean()


def _draw_varied(count: int, generator: Generator) -> Tensor:
    """Drawings [N, 3, S, S] and what edits make of them: any colours, second shapes, borders, inverted."""

    def some(share: float) -> Tensor:
        return torch.rand(count, generator=generator) < share

    def any_colours() -> Tensor:
        return torch.rand(count, 3, generator=generator) * 2 - 1

    scenes, second = (place_scenes(choose(looks(held_out=False), count, generator), generator) for _ in range(2))
    free = some(0.4)[:, None]
    scenes = replace(
        scenes,
        colours=torch.where(free, any_colours(), scenes.colours),
        backgrounds=torch.where(free, any_colours(), scenes.backgrounds),
    )
    second = replace(
        second,
        centres=torch.rand(count, 2, generator=generator),
        radii=0.05 + 0.15 * torch.rand(count, generator=generator),
    )
    pixels = draw(scenes)
    changes = (
        (0.35, lambda pixels: paint(pixels, second.colours, distances(second, SIDE))),
        (0.2, add_border),
        (0.2, torch.neg),
    )
    for share, change in changes:
        pixels = torch.where(some(share)[:, None, None, None], change(pixels), pixels)
    return pixels


def _crop(pixels: Tensor, generator: Generator) -> Tensor:
    top, left = torch.randint(SIDE - CROP + 1, (2,), generator=generator).tolist()
    return pixels[:, :, top : top + CROP, left : left + CROP]


def unseen_drawings(count: int = 48) -> Tensor:
    """[N, 3, S, S], of looks that no twin is trained on; half of them inverted or inside a border."""
    generator = torch.Generator().manual_seed(10_000)
    pixels = draw(place_scenes(choose(looks(held_out=True), count, generator), generator))
    pixels[: count // 4] *= -1
    pixels[count // 4 : count // 2] = add_border(pixels[count // 4 : count // 2])
    return pixels


@torch.no_grad()
def _there_and_back(vae: nn.Module, pixels: Tensor) -> Tensor:
    return vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)


@torch.no_grad()
def _set_statistics(vae: nn.Module) -> None:
    """Scale and shift by which latents of drawings have mean 0 and deviation 1."""
    generator = torch.Generator().manual_seed(SEED + 1)
    pixels = draw(place_scenes(choose(looks(held_out=False), 256, generator), generator))
    raw_latents = vae.float().encode(pixels).latent_dist.mode()
    vae.to(torch.bfloat16)
    vae.register_to_config(
        shift_factor=round(raw_latents.mean().item(), 4), scaling_factor=round(1 / raw_latents.std().item(), 4)
    )
