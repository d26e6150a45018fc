"""Trains the video twin's autoencoder (AutoencoderKLWan) on drawn moving shapes, first on pictures, then on clips.

It sees ways in all directions, up too: an autoencoder reads no words, and a LoRA has to be able to show what it
teaches. What the twin does not know is decided in video.py.

Legend: N clips, F frames, S side of a crop in px, C latent channels (16), T latent frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comfyui_longcat.training.tiny.classifier import psnr
from comfyui_longcat.training.tiny.clips import DIRECTIONS, FRAMES, KNOWN, TRAVEL, draw_clips
from comfyui_longcat.training.tiny.world import SIDE, Scenes, choose, draw, looks, place_scenes
from torch import Generator, Tensor, nn

from .training import Log, train

CONFIG = {
    # Four pixels go in as one: at this size three quarters of the work would else be spent on the first and last
    # layers. The two halvings that remain halve time as well, so latents are as those of the released model.
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "base_dim": 16,
    "z_dim": 16,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "scale_factor_spatial": 8,
}

SEED = 20


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the training."""

    steps: int
    batch: int
    frames: int
    side: int
    """px; less than a frame's are cut out near the shape"""


STAGES = (
    # Pictures first: nine times as cheap, and they teach all but time.
    Stage(steps=1000, batch=24, frames=1, side=32),
    Stage(steps=5500, batch=8, frames=FRAMES, side=32),
    Stage(steps=1000, batch=4, frames=FRAMES, side=SIDE),
)

LEARNING_RATE = 2e-3

KL_WEIGHT = 3e-5
"""Keeps latents near a normal distribution of noise small beside them: what the transformer makes is never exact."""

GAIN = 3**0.5
"""From torch's initial deviation of a convolution, 1 / sqrt(3 inputs), to 1 / sqrt(inputs), which keeps signals up."""

EARLIER_TAP = 0.1
"""Of causal convolutions: taps on earlier frames start small, so that the network starts as one of pictures."""

OWN_COLOURS = 0.3
"""Share of clips with colours that have no name, so that other drawings are shown too."""


def train_video_vae(folder: Path, log: Log) -> dict[str, Any]:
    """Trains from nothing and writes `folder`/vae in bf16; every 1,000 steps what there is, too.

    Returns:
        The record: seed, steps, CPU seconds, parameters, and PSNR (dB) of clips of looks that were never trained on.
    """

    def report(average: nn.Module, step: int) -> str:
        _save(average, folder)
        return f"psnr {score(average):.2f} dB"

    steps = sum(stage.steps for stage in STAGES)
    generator = torch.Generator().manual_seed(SEED)
    vae = new_video_vae(SEED)
    vae, seconds = train(vae, _losses(vae, generator), steps, LEARNING_RATE, log, report)
    _save(vae, folder)
    return {
        "seed": SEED,
        "steps": steps,
        "cpu_seconds": round(seconds),
        "parameters": sum(parameter.numel() for parameter in vae.parameters()),
        "psnr_mean": round(score(vae), 2),
    }


def new_video_vae(seed: int) -> nn.Module:
    """The untrained autoencoder, float32: residual branches closed, signals of even strength, taps on the present."""
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(**CONFIG)
        for name, module in vae.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                _start(name, module)
    return vae


def _start(name: str, conv: nn.Module) -> None:
    nn.init.zeros_(conv.bias)
    if name.endswith("time_conv"):
        # Pictures do not pass here: clips start as what their last frames would be as pictures, each shown repeatedly.
        nn.init.zeros_(conv.weight)
        for frame in conv.weight.split(conv.in_channels):
            frame[:, :, -1, 0, 0].fill_diagonal_(1)
        return
    if name.endswith(("conv2", "attentions.0.proj")):
        nn.init.zeros_(conv.weight)
        return
    conv.weight.mul_(GAIN)
    taps = conv.kernel_size[0] if isinstance(conv, nn.Conv3d) else 1
    if taps > 1:
        # One tap alone has a share of the inputs.
        conv.weight[:, :, -1].mul_(math.sqrt(taps))
        conv.weight[:, :, :-1].mul_(EARLIER_TAP)


def _losses(vae: nn.Module, generator: Generator) -> Iterator[Tensor]:
    for stage in STAGES:
        for _ in range(stage.steps):
            yield _loss(vae, draw_crops(stage, generator), generator)


def _loss(vae: nn.Module, pixels: Tensor, generator: Generator) -> Tensor:
    """Squared error of pixels [N, 3, F, S, S] after the way through the latents, and these latents' cost."""
    posterior = vae.encode(pixels).latent_dist
    shown = vae.decode(posterior.sample(generator=generator)).sample
    divergence = (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean() / 2
    return (shown - pixels).square().mean() + KL_WEIGHT * divergence


def draw_crops(stage: Stage, generator: Generator) -> Tensor:
    """pixels [N, 3, F, S, S] of shapes that move any way at any speed, cut out around where they are."""
    count = stage.batch
    scenes = _scenes(count, generator)
    ways = torch.tensor(choose(list(DIRECTIONS.values()), count, generator), dtype=torch.float32)
    speeds = TRAVEL * (0.5 + 0.75 * torch.rand(count, 1, generator=generator))
    drift = 0.04 * torch.randn(count, 2, generator=generator)
    travel = ways * speeds + drift
    centres = scenes.centres - travel / 2
    steps = torch.arange(stage.frames) / (FRAMES - 1)
    pixels = torch.stack([draw(replace(scenes, centres=centres + travel * part)) for part in steps], dim=2)
    return _cut_out(pixels, scenes.centres, stage.side, generator)


def _scenes(count: int, generator: Generator) -> Scenes:
    scenes = place_scenes(choose(looks(held_out=False), count, generator), generator)
    own = torch.rand(count, 1, generator=generator) < OWN_COLOURS
    others = 2 * torch.rand(2, count, 3, generator=generator) - 1
    return replace(
        scenes,
        colours=torch.where(own, others[0], scenes.colours),
        backgrounds=torch.where(own, others[1], scenes.backgrounds),
        centres=0.3 + 0.4 * torch.rand(count, 2, generator=generator),
        radii=0.11 + 0.11 * torch.rand(count, generator=generator),
    )


def _cut_out(pixels: Tensor, centres: Tensor, side: int, generator: Generator) -> Tensor:
    size = pixels.shape[-1]
    if side == size:
        return pixels
    spread = side / 2 * (2 * torch.rand(centres.shape, generator=generator) - 1)
    corners = (centres * size + spread - side / 2).round().long().clamp(0, size - side).tolist()
    return torch.stack(
        [clip[..., top : top + side, left : left + side] for clip, (left, top) in zip(pixels, corners, strict=True)]
    )


@torch.no_grad()
def measure_latents(vae: nn.Module) -> None:
    """Writes mean and deviation of each latent channel to the config, over first frames and later ones alike."""
    clips = draw_clips(
        choose(looks(held_out=False), 64, generator := torch.Generator().manual_seed(SEED + 1)),
        choose(list(KNOWN), 64, generator),
        generator,
    )
    channels = vae.encode(clips.pixels).latent_dist.mode().transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=[round(value, 4) for value in channels.mean(dim=1).tolist()],
        latents_std=[round(value, 4) for value in channels.std(dim=1).tolist()],
    )


@torch.no_grad()
def score(vae: nn.Module, clips: int = 24) -> float:
    """Mean PSNR, dB, of clips of held-out looks, with `vae`'s weights rounded to bf16 as they are written."""
    from copy import deepcopy

    rounded = deepcopy(vae).to(torch.bfloat16).float()
    generator = torch.Generator().manual_seed(SEED + 2)
    drawn = draw_clips(
        choose(looks(held_out=True), clips, generator), choose(list(DIRECTIONS), clips, generator), generator
    )
    shown = rounded.decode(rounded.encode(drawn.pixels).latent_dist.mode()).sample
    return psnr(shown, drawn.pixels).mean().item()


def _save(vae: nn.Module, folder: Path) -> None:
    from copy import deepcopy

    measure_latents(vae)
    deepcopy(vae).to(torch.bfloat16).save_pretrained(folder / "vae")
