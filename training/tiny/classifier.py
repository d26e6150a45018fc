"""Reads a picture or clip of the drawn world without learning: colour, shape, background, position, motion.

Legend: N pictures or clips, F frames, S side in px.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .clips import DIRECTIONS, TRAVEL
from .world import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SQUARE_SIZE, TRIANGLE_SIZE, Look, Scenes, distances, rgb

SHAPE_CONTRAST = 60
"""Of 0..255, length of the difference to the background from which a pixel belongs to the shape."""

COLOUR_TOLERANCE = 60
"""Of 0..255, length of the difference to the nearest known colour up to which a colour is recognised."""

LEAST_AREA = 0.01
"""Share of the picture; less is a speck and no shape."""

LEAST_OVERLAP = 0.7
"""Intersection over union with the drawn shape of equal area and centre."""

MOTION_TOLERANCE = 7.0
"""Px, in a picture of 64 px, that the way from first to last frame may be off along x and along y."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one picture shows; None where nothing is recognised."""

    shape: str | None
    colour: str | None
    background: str | None
    position: str | None
    centre: tuple[float, float] | None
    """px, x and y"""

    def shows(self, look: Look) -> bool:
        """Whether all four words are right."""
        return (self.shape, self.colour, self.background, self.position) == (
            look.shape,
            look.colour,
            look.background,
            look.position,
        )


def read_pictures(pixels: Tensor, margin: int = 0) -> list[Reading]:
    """Reads pixels [N, 3, S, S] in -1..1; the outer `margin` px are not looked at (a border, say)."""
    return [_read(one, margin) for one in pixels.float()]


def read_directions(clips: Tensor) -> list[str | None]:
    """Where the shape goes in each of the clips [N, 3, F, S, S]: one of `DIRECTIONS`, or None.

    The way from the first to the last frame has to be that of a drawn clip within `MOTION_TOLERANCE`.
    """
    size = clips.shape[-1]
    starts, ends = read_pictures(clips[:, :, 0]), read_pictures(clips[:, :, -1])
    return [_direction(start.centre, end.centre, size) for start, end in zip(starts, ends, strict=True)]


def psnr(pixels: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each of N pictures or clips in -1..1, dB: [N]."""
    error = ((pixels.float() - target.float()) / 2).square().flatten(1).mean(dim=1)
    return -10 * error.clamp(min=1e-10).log10()


def _read(pixels: Tensor, margin: int) -> Reading:
    size = pixels.shape[-1]
    inner = pixels[:, margin : size - margin, margin : size - margin]
    ground = _ring(inner).median(dim=1).values
    far = (inner - ground[:, None, None]).norm(dim=0) * 127.5 > SHAPE_CONTRAST
    background = _nearest(ground, BACKGROUNDS)
    if far.sum() < LEAST_AREA * size**2:
        return Reading(shape=None, colour=None, background=background, position=None, centre=None)
    colour = inner[:, far].median(dim=1).values
    rows, columns = far.nonzero(as_tuple=True)
    x, y = columns.float().mean().item() + 0.5 + margin, rows.float().mean().item() + 0.5 + margin
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[margin : size - margin, margin : size - margin] = far
    shape = _best_shape(mask, (x, y))
    return Reading(
        shape=shape,
        colour=_nearest(colour, COLOURS),
        background=background,
        position=_position(x, y, size),
        centre=(x, y),
    )


def _ring(pixels: Tensor, width: int = 2) -> Tensor:
    """[3, M]: the pixels along the four sides."""
    sides = (pixels[:, :width], pixels[:, -width:], pixels[:, :, :width], pixels[:, :, -width:])
    return torch.cat([side.flatten(1) for side in sides], dim=1)


def _nearest(colour: Tensor, names: dict[str, tuple[int, int, int]]) -> str | None:
    far = (rgb(*names.values()) - colour).norm(dim=1) * 127.5
    return list(names)[int(far.argmin())] if far.min() < COLOUR_TOLERANCE else None


def _best_shape(mask: Tensor, centre: tuple[float, float]) -> str | None:
    """The shape of the mask's area and centre that overlaps it most, if enough."""
    size, area = mask.shape[-1], mask.sum().item()
    sizes = {
        "circle": (area / torch.pi) ** 0.5,
        "square": area**0.5 / (2 * SQUARE_SIZE),
        "triangle": (area / (3 * 3**0.5 / 4)) ** 0.5 / TRIANGLE_SIZE,
    }
    drawn = distances(
        Scenes(
            shapes=torch.arange(len(SHAPES)),
            colours=torch.zeros(len(SHAPES), 3),
            backgrounds=torch.zeros(len(SHAPES), 3),
            centres=torch.tensor([centre] * len(SHAPES)) / size,
            radii=torch.tensor([sizes[shape] for shape in SHAPES]) / size,
        ),
        size,
    )
    ideal = drawn < 0
    overlap = (ideal & mask).sum(dim=(1, 2)) / (ideal | mask).sum(dim=(1, 2))
    best = int(overlap.argmax())
    return SHAPES[best] if overlap[best] > LEAST_OVERLAP else None


def _position(x: float, y: float, size: int) -> str:
    away = {
        name: (x / size - 0.5 - across) ** 2 + (y / size - 0.5 - down) ** 2
        for name, (across, down) in POSITIONS.items()
    }
    return min(away, key=away.__getitem__)


def _direction(start: tuple[float, float] | None, end: tuple[float, float] | None, size: int) -> str | None:
    if start is None or end is None:
        return None
    tolerance, travel = MOTION_TOLERANCE * size / 64, TRAVEL * size
    for name, (across, down) in DIRECTIONS.items():
        if (
            abs(end[0] - start[0] - travel * across) <= tolerance
            and abs(end[1] - start[1] - travel * down) <= tolerance
        ):
            return name
    return None
