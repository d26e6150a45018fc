"""How well the video twin does what it has learnt, through the product's own loading, encoding and sampling.

Legend: N clips, F frames, S side in px, L text slots, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from comfyui_longcat.training.models.contract import TextEncoder
from comfyui_longcat.training.models.flow import video_sigmas
from comfyui_longcat.training.models.video.family import LongCatVideoFamily
from comfyui_longcat.training.sampling.euler import ZeroStarGuidance, initial_noise, sample_video
from comfyui_longcat.training.tiny.classifier import Reading, psnr, read_directions, read_pictures
from comfyui_longcat.training.tiny.clips import Clips, clip_looks, draw_clips
from comfyui_longcat.training.tiny.world import Look, choose
from torch import Tensor

from .loading import Twin

SAMPLING_STEPS = 20
GUIDANCE = 2.0
"""The twin follows its prompts with it; the real model's 4 makes colours glaring."""

FAMILY = LongCatVideoFamily()


@dataclass(frozen=True, kw_only=True)
class ClipScores:
    """Of clips of one direction."""

    right: float
    """Share whose shape goes there, 0..1."""
    psnr: float
    """dB, mean over the clips, of all frames but the first, to the drawn ones."""


def unseen_clips(direction: str, count: int, seed: int) -> tuple[list[Look], Clips]:
    """Clips of one direction, of looks that the twin was not trained on."""
    generator = torch.Generator().manual_seed(seed)
    chosen = choose(clip_looks(held_out=True), count, generator)
    return chosen, draw_clips(chosen, [direction] * count, generator)


def encode_prompts(text_encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """[N, L, D], all 512 slots."""
    return torch.cat([FAMILY.encode_prompt(text_encoder, prompt, ()) for prompt in prompts])


@torch.no_grad()
def sample_latents(twin: Twin, clips: Clips, seed: int, start_given: bool = True) -> Tensor:
    """Latents [N, C, T, h, w] sampled for the captions of `clips`, and for their first frames if `start_given`."""
    count, _, frames, height, width = clips.pixels.shape
    shape = (count, *FAMILY.latents_shape(twin.vae.config, (width, height), frames)[1:])
    starts = [FAMILY.encode_pixels(twin.vae, clips.pixels[:, :, 0])] if start_given else []
    prompts, empty = (encode_prompts(twin.text_encoder, texts) for texts in (clips.captions, [""]))
    inputs, unguided = (
        FAMILY.prepare_inputs(shape, embeds.float(), starts) for embeds in (prompts, empty.expand_as(prompts))
    )
    guidance = ZeroStarGuidance(inputs=unguided, scale=GUIDANCE)
    noise = initial_noise(shape, seed)
    return sample_video(FAMILY, twin.transformer, noise, inputs, video_sigmas(SAMPLING_STEPS), guidance)


def sample_clips(twin: Twin, clips: Clips, seed: int, start_given: bool = True) -> Tensor:
    """Pixels [N, 3, F, S, S] of `sample_latents`."""
    return FAMILY.decode(twin.vae, sample_latents(twin, clips, seed, start_given))


def score_clips(pixels: Tensor, clips: Clips, direction: str) -> ClipScores:
    """Compares pixels [N, 3, F, S, S] with what was drawn."""
    right = sum(read == direction for read in read_directions(pixels))
    near = psnr(pixels[:, :, 1:], clips.pixels[:, :, 1:])
    return ClipScores(right=right / len(pixels), psnr=near.mean().item())


def score_looks(pixels: Tensor, wanted: Sequence[Look]) -> float:
    """Share of pixels [N, 3, F, S, S] whose first and last frames both show the right shape, colour and background."""
    first, last = read_pictures(pixels[:, :, 0]), read_pictures(pixels[:, :, -1])
    right = [_seen(start) == _seen(end) == _seen(look) for start, end, look in zip(first, last, wanted, strict=True)]
    return sum(right) / len(right)


def _seen(described: Reading | Look) -> tuple[str | None, ...]:
    return described.shape, described.colour, described.background
