"""The world that the tiny twins know: one plain shape on a plain ground, drawn from numbers, any count at once.

Drawn, not noise: every picture shows what its caption says, so that a model can learn it and an eye can judge it.

Legend: N pictures, S side in px. Lengths in scenes are shares of the picture's side, y points down, pixels are -1..1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Generator, Tensor

from ..data.media import from_pixels

SIDE = 64
"""Px, of the pictures and frames that the twins have learnt from."""

SHAPES = ("circle", "square", "triangle")

COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 80, 230),
    "yellow": (245, 215, 40),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
}

BACKGROUNDS = {
    "white": (250, 250, 250),
    "black": (12, 12, 12),
    "grey": (128, 128, 128),
    "pink": (250, 190, 205),
}

POSITIONS = {
    "middle": (0.0, 0.0),
    "left": (-0.22, 0.0),
    "right": (0.22, 0.0),
    "top": (0.0, -0.22),
    "bottom": (0.0, 0.22),
}
"""Way from the picture's centre."""

RADII = (0.16, 0.22)
JITTER = 0.03
"""How far a centre may lie from its position, along x and along y."""

SQUARE_SIZE = 0.85
TRIANGLE_SIZE = 1.2
"""Half the side of a square and the outer radius of a triangle over the radius: all three shapes look equally large."""

HOLD_OUT = (7, 3, 5, 11)
"""Weights of shape, colour, background and position; a look whose sum is a multiple of 8 is never trained on."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The words for one scene."""

    shape: str
    colour: str
    background: str
    position: str


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """N scenes as numbers."""

    shapes: Tensor
    """[N] int64, place in `SHAPES`"""
    colours: Tensor
    """[N, 3]"""
    backgrounds: Tensor
    """[N, 3]"""
    centres: Tensor
    """[N, 2], x and y"""
    radii: Tensor
    """[N]"""


def looks(held_out: bool | None = None) -> list[Look]:
    """All 360 combinations of words; only those never trained on (44), or only the others (316)."""
    words = (SHAPES, COLOURS, BACKGROUNDS, POSITIONS)
    chosen = []
    for numbered in itertools.product(*(list(enumerate(kind)) for kind in words)):
        total = sum(weight * number for weight, (number, _) in zip(HOLD_OUT, numbered, strict=True))
        if held_out is None or held_out == (total % 8 == 0):
            shape, colour, background, position = (word for _, word in numbered)
            chosen.append(Look(shape=shape, colour=colour, background=background, position=position))
    return chosen


def choose(options: list, count: int, generator: Generator) -> list:
    """`count` of `options`, each drawn independently."""
    return [options[place] for place in torch.randint(len(options), (count,), generator=generator).tolist()]


def place_scenes(chosen: list[Look], generator: Generator) -> Scenes:
    """A scene for each look; the exact place and the size are drawn from `generator`."""
    count = len(chosen)
    middles = torch.tensor([POSITIONS[look.position] for look in chosen]) + 0.5
    smallest, largest = RADII
    return Scenes(
        shapes=torch.tensor([SHAPES.index(look.shape) for look in chosen]),
        colours=rgb(*(COLOURS[look.colour] for look in chosen)),
        backgrounds=rgb(*(BACKGROUNDS[look.background] for look in chosen)),
        centres=middles + JITTER * (2 * torch.rand(count, 2, generator=generator) - 1),
        radii=smallest + (largest - smallest) * torch.rand(count, generator=generator),
    )


def rgb(*colours: tuple[int, int, int]) -> Tensor:
    """Colours of 0..255 as [N, 3] in -1..1."""
    return torch.tensor(colours, dtype=torch.float32) / 127.5 - 1


def draw(scenes: Scenes, size: int = SIDE) -> Tensor:
    """Pixels [N, 3, S, S], S = `size`, with edges one pixel soft."""
    canvas = scenes.backgrounds[:, :, None, None].expand(-1, -1, size, size)
    return paint(canvas, scenes.colours, distances(scenes, size))


def paint(pixels: Tensor, colours: Tensor, distance: Tensor) -> Tensor:
    """Lays a colour over where `distance` is negative.

    Args:
        pixels: [N, 3, S, S]
        colours: [N, 3]
        distance: [N, S, S] or [S, S], px to the edge, negative inside.

    Returns:
        [N, 3, S, S]
    """
    cover = (0.5 - distance).clamp(0, 1).expand(len(pixels), *pixels.shape[-2:]).unsqueeze(1)
    return torch.lerp(pixels, colours[:, :, None, None].expand_as(pixels), cover)


def distances(scenes: Scenes, size: int) -> Tensor:
    """[N, S, S], px from each pixel's middle to the shape's edge, negative inside (exact along the sides)."""
    x, y = offsets(scenes.centres, size)
    radii = (scenes.radii * size)[:, None, None]
    circle = torch.hypot(x, y) - radii
    square = torch.maximum(x.abs(), y.abs()) - SQUARE_SIZE * radii
    slope = 3**0.5 / 2 * x.abs() - y / 2
    triangle = torch.maximum(slope, y) - TRIANGLE_SIZE * radii / 2
    return torch.stack([circle, square, triangle])[scenes.shapes, torch.arange(len(scenes.shapes))]


def offsets(centres: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Of centres [N, 2]: px from them to each pixel's middle, along x [N, S, S] and along y [N, S, S]."""
    middles = torch.arange(size) + 0.5
    x = middles - size * centres[:, 0, None]
    y = middles - size * centres[:, 1, None]
    return x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)


def moved(scenes: Scenes, across: float, down: float) -> Scenes:
    """The same scenes with their shapes moved."""
    return replace(scenes, centres=scenes.centres + torch.tensor([across, down]))


def pictures(pixels: Tensor) -> list[Image.Image]:
    """pixels [N, 3, H, W] -> N RGB pictures."""

    return [from_pixels(one.unsqueeze(0)) for one in pixels]
