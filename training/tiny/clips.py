"""Drawn clips: one shape of the drawn world that moves as its caption says.

The tiny video twin has learnt `KNOWN`; the way up is for a LoRA to teach.

Legend: N clips, F frames, S side in px.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from .captions import clip_captions
from .world import SIDE, Look, Scenes, choose, draw, looks, place_scenes

DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "still": (0, 0), "up": (0, -1)}
"""Way of the shape along x and y, y downwards."""

KNOWN = ("right", "left", "down", "still")
"""What the tiny video twin has learnt."""

TRAVEL = 0.28
"""Share of the side that a moving shape passes from the first frame to the last, at one speed."""

START_SPREAD = 0.06
"""How far from the middle a shape starts; the start says nothing about the way."""

RADII = (0.13, 0.17)

FRAMES = 9
FRAMES_PER_SECOND = 15
"""That of the trained clips, so that nothing is resampled."""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """N drawn clips."""

    pixels: Tensor
    """[N, 3, F, S, S], -1..1"""
    captions: list[str]
    paths: Tensor
    """[N, F, 2], x and y of the shape's centre, px"""


def clip_looks(held_out: bool) -> list[Look]:
    """Looks of clips, which all start near the middle: 63 that the twin is trained on, or the 9 others."""
    return [look for look in looks(held_out) if look.position == "middle"]


def draw_clips(
    chosen: list[Look], directions: list[str], generator: Generator, frames: int = FRAMES, size: int = SIDE
) -> Clips:
    """One clip for each look, whose position does not matter, and direction; start, size and wording are drawn."""
    scenes = moving_scenes(chosen, directions, generator, frames)
    wordings = [
        choose(clip_captions(look, direction), 1, generator)[0]
        for look, direction in zip(chosen, directions, strict=True)
    ]
    return Clips(
        pixels=torch.stack([draw(of_frame, size) for of_frame in scenes], dim=2),
        captions=wordings,
        paths=torch.stack([of_frame.centres for of_frame in scenes], dim=1) * size,
    )


def moving_scenes(
    chosen: list[Look], directions: list[str], generator: Generator, frames: int = FRAMES
) -> list[Scenes]:
    """The N scenes as they are in each of the F frames."""
    start = _starts(chosen, generator)
    ways = torch.tensor([DIRECTIONS[direction] for direction in directions], dtype=torch.float32)
    steps = [TRAVEL * frame / max(frames - 1, 1) for frame in range(frames)]
    return [replace(start, centres=start.centres + ways * step) for step in steps]


def _starts(chosen: list[Look], generator: Generator) -> Scenes:
    count = len(chosen)
    scenes = place_scenes(chosen, generator)
    smallest, largest = RADII
    return replace(
        scenes,
        centres=0.5 + START_SPREAD * (2 * torch.rand(count, 2, generator=generator) - 1),
        radii=smallest + (largest - smallest) * torch.rand(count, generator=generator),
    )
