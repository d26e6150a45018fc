"""A small world of drawn shapes, as pairs with instructions and as pictures with captions: for the demo, the shipped
workflows and the tests.

Drawn, not noise: every pair shows what its instruction says, so that an adapter can learn it and an eye can judge it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..files import replacing_folder

if TYPE_CHECKING:
    from PIL import Image

COLOURS = {
    "red": (214, 48, 49),
    "orange": (235, 126, 32),
    "yellow": (240, 196, 25),
    "green": (46, 160, 67),
    "purple": (136, 70, 180),
    "pink": (232, 110, 165),
}
BACKGROUNDS = {
    "white": (250, 250, 248),
    "grey": (176, 180, 184),
    "sand": (222, 205, 170),
    "slate": (44, 54, 68),
}
BLUE = (30, 90, 215)
"""The colour that edits bring in; no shape and no background has it."""

CHINESE_COLOURS = {
    "red": "\u7ea2\u8272",
    "orange": "\u6a59\u8272",
    "yellow": "\u9ec4\u8272",
    "green": "\u7eff\u8272",
    "purple": "\u7d2b\u8272",
    "pink": "\u7c89\u8272",
    "white": "\u767d\u8272",
    "grey": "\u7070\u8272",
    "sand": "\u6c99\u8272",
    "slate": "\u6df1\u7070\u8272",
}
CHINESE_SHAPES = {
    "circle": "\u5706\u5f62",
    "square": "\u65b9\u5757",
    "triangle": "\u4e09\u89d2\u5f62",
}

BORDER_SHARE = 1 / 8
"""Width of the border over the side: one 8 px cell of the VAE in a 64 px picture."""

SUPERSAMPLING = 4
"""Drawn this many times larger and averaged down, for smooth edges."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One shape on a plain ground; lengths are shares of the picture's side."""

    shape: str
    colour: tuple[int, int, int]
    background: tuple[int, int, int]
    centre: tuple[float, float]
    radius: float
    border: tuple[int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Look:
    """The words for a scene."""

    shape: str
    colour: str
    background: str


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What an instruction does to a scene, and its wordings (`{shape}`, `{chinese_shape}` are filled in)."""

    apply: Callable[[Scene], Scene]
    wordings: tuple[str, ...]


def _inverted(scene: Scene) -> Scene:
    colour, background = (tuple(255 - channel for channel in c) for c in (scene.colour, scene.background))
    return replace(scene, colour=colour, background=background)


EDITS = {
    "border": Edit(
        apply=lambda scene: replace(scene, border=BLUE),
        wordings=(
            "add a blue border",
            "\u7ed9\u56fe\u7247\u52a0\u4e00\u4e2a\u84dd\u8272\u8fb9\u6846",
            "put a blue frame around the picture",
            "give the image a thick blue border",
            "\u5728\u56fe\u7247\u56db\u5468\u52a0\u4e0a\u84dd\u8272\u8fb9\u6846",
        ),
    ),
    "recolour": Edit(
        apply=lambda scene: replace(scene, colour=BLUE),
        wordings=(
            "make the {shape} blue",
            "\u628a{chinese_shape}\u53d8\u6210\u84dd\u8272",
            "change the colour of the {shape} to blue",
        ),
    ),
    "invert": Edit(
        apply=_inverted,
        wordings=("invert the colours", "\u53cd\u8f6c\u56fe\u7247\u7684\u989c\u8272"),
    ),
}


def draw_example_pairs(targets: Path, references: Path, count: int = 12, size: int = 64, seed: int = 0) -> None:
    """Writes `count` pairs that teach one edit, the blue border, as picture files.

    `targets` gets `<name>.png` and the instruction `<name>.txt`, `references` gets `<name>.png`. Each folder appears
    whole or not at all. A folder that already holds files is left as it is: it may be the user's.

    Args:
        count: number of pairs.
        size: px, side of the square pictures.
        seed: of the shapes and the wordings.

    Raises:
        OSError: the disk is full or a folder cannot be written.
    """
    pairs = draw_pairs(count, size, seed)
    if not holds_files(references):
        with replacing_folder(references) as folder:
            for name, reference, _, _ in pairs:
                reference.save(folder / f"{name}.png")
    if not holds_files(targets):
        with replacing_folder(targets) as folder:
            for name, _, target, instruction in pairs:
                target.save(folder / f"{name}.png")
                (folder / f"{name}.txt").write_text(instruction + "\n", encoding="utf-8")


def draw_example_pictures(folder: Path, count: int = 12, size: int = 64, seed: int = 0) -> None:
    """Writes `count` pictures `<name>.png` with captions `<name>.txt` that say what is drawn, every third in Chinese.

    The folder appears whole or not at all. One that already holds files is left as it is: it may be the user's.

    Args:
        count: number of pictures.
        size: px, side of the square pictures.
        seed: of the shapes.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    if holds_files(folder):
        return
    with replacing_folder(folder) as temporary:
        for number, look, scene in _scenes(count, seed):
            name = f"{number + 1:02d}-{look.colour}-{look.shape}"
            draw_scene(scene, size).save(temporary / f"{name}.png")
            (temporary / f"{name}.txt").write_text(_caption(look, number % 3 == 2) + "\n", encoding="utf-8")


def draw_pairs(
    count: int, size: int = 64, seed: int = 0, edit: str = "border"
) -> list[tuple[str, Image.Image, Image.Image, str]]:
    """`count` pairs (name, reference, target, instruction) in memory; both pictures are RGB of `size` x `size` px.

    The first pairs of a longer list equal those of a shorter one; another seed gives other scenes.

    Args:
        edit: one of `EDITS`: border, recolour, invert.

    Raises:
        ConfigError: `edit` is none of them.
    """
    if edit not in EDITS:
        raise ConfigError(f"edit is {edit!r}; it must be one of {', '.join(EDITS)}.")
    chosen = EDITS[edit]
    pairs = []
    for number, look, scene in _scenes(count, seed):
        wording = chosen.wordings[number % len(chosen.wordings)]
        instruction = wording.format(shape=look.shape, chinese_shape=CHINESE_SHAPES[look.shape])
        name = f"{number + 1:02d}-{look.colour}-{look.shape}"
        pairs.append((name, draw_scene(scene, size), draw_scene(chosen.apply(scene), size), instruction))
    return pairs


def _scenes(count: int, seed: int) -> Iterator[tuple[int, Look, Scene]]:
    generator = random.Random(seed)
    looks = list(itertools.product(COLOURS, BACKGROUNDS))
    generator.shuffle(looks)
    shapes = list(CHINESE_SHAPES)
    for number, (colour, background) in enumerate(itertools.islice(itertools.cycle(looks), count)):
        look = Look(shape=shapes[number % len(shapes)], colour=colour, background=background)
        scene = Scene(
            shape=look.shape,
            colour=COLOURS[colour],
            background=BACKGROUNDS[background],
            centre=(generator.uniform(0.38, 0.62), generator.uniform(0.38, 0.62)),
            radius=generator.uniform(0.15, 0.23),
        )
        yield number, look, scene


def _caption(look: Look, chinese: bool) -> str:
    if not chinese:
        article = "an" if look.colour[0] in "aeiou" else "a"
        return f"{article} {look.colour} {look.shape} on a {look.background} background"
    background, colour = CHINESE_COLOURS[look.background], CHINESE_COLOURS[look.colour]
    return f"{background}\u80cc\u666f\u4e0a\u7684{colour}{CHINESE_SHAPES[look.shape]}"


def draw_scene(scene: Scene, size: int) -> Image.Image:
    """The scene as an RGB picture of `size` x `size` px."""
    from PIL import Image, ImageDraw

    side = size * SUPERSAMPLING
    picture = Image.new("RGB", (side, side), scene.background)
    draw = ImageDraw.Draw(picture)
    x, y = (share * side for share in scene.centre)
    radius = scene.radius * side
    if scene.shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=scene.colour)
    elif scene.shape == "square":
        half = 0.85 * radius
        draw.rectangle((x - half, y - half, x + half, y + half), fill=scene.colour)
    elif scene.shape == "triangle":
        angles = (-math.pi / 2 + corner * 2 * math.pi / 3 for corner in range(3))
        draw.polygon([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles], fill=scene.colour)
    else:
        raise ConfigError(f"shape is {scene.shape!r}; it must be one of {', '.join(CHINESE_SHAPES)}.")
    if scene.border is not None:
        draw.rectangle((0, 0, side - 1, side - 1), outline=scene.border, width=round(BORDER_SHARE * side))
    return picture.reduce(SUPERSAMPLING)


def holds_files(folder: Path) -> bool:
    """Whether there is anything in `folder`: what is there is never drawn over."""
    return folder.is_dir() and any(folder.iterdir())
