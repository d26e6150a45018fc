"""Drawn clips: a coloured shape that moves as its caption says, with the pictures that they start from.

For the demo, the shipped video workflows and the tests; the shapes are those of `world`.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.video_writer import write_video
from ..files import replacing_folder
from .world import BACKGROUNDS, CHINESE_SHAPES, COLOURS, Scene, draw_scene, holds_files

if TYPE_CHECKING:
    from PIL import Image

FRAMES_PER_SECOND = 15
"""That of the trained clips, so that nothing is resampled."""

DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
"""Way of the shape along x and y, y downwards."""

TRAVEL = 0.4
"""Share of the side that a moving shape passes from the first frame to the last."""

CHINESE_COLOURS = {
    "red": "\u7ea2\u8272",
    "orange": "\u6a59\u8272",
    "yellow": "\u9ec4\u8272",
    "green": "\u7eff\u8272",
    "purple": "\u7d2b\u8272",
    "pink": "\u7c89\u8272",
}
ENGLISH_MOVES = {
    "right": "moves to the right",
    "left": "moves to the left",
    "up": "moves up",
    "down": "moves down",
    "still": "stays where it is",
}
CHINESE_MOVES = {
    "right": "\u5411\u53f3\u79fb\u52a8",
    "left": "\u5411\u5de6\u79fb\u52a8",
    "up": "\u5411\u4e0a\u79fb\u52a8",
    "down": "\u5411\u4e0b\u79fb\u52a8",
    "still": "\u4fdd\u6301\u9759\u6b62",
}


def draw_example_clips(
    clips: Path, start_frames: Path, count: int = 6, size: int = 64, frames: int = 9, seed: int = 0
) -> None:
    """Writes `count` captioned clips as video files, and the first frame of each as a picture.

    `clips` gets `<name>.mp4` and the caption `<name>.txt`, `start_frames` gets `<name>.png`. Each folder appears whole
    or not at all. A folder that already holds files is left as it is: it may be the user's.

    Args:
        count: number of clips.
        size: px, side of the square frames.
        frames: of each clip.
        seed: of the shapes, colours and ways.

    Raises:
        OSError: the disk is full or a folder cannot be written.
    """
    drawn = draw_clips(count, size, frames, seed)
    if not holds_files(start_frames):
        with replacing_folder(start_frames) as folder:
            for name, pictures, _ in drawn:
                pictures[0].save(folder / f"{name}.png")
    if not holds_files(clips):
        with replacing_folder(clips) as folder:
            for name, pictures, caption in drawn:
                write_video(folder / f"{name}.mp4", pictures, FRAMES_PER_SECOND)
                (folder / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")


def draw_clips(count: int, size: int = 64, frames: int = 9, seed: int = 0) -> list[tuple[str, list[Image.Image], str]]:
    """`count` clips (name, frames, caption) in memory; the frames are RGB of `size` x `size` px.

    The first clips of a longer list equal those of a shorter one; another seed gives other clips.
    """
    generator = random.Random(seed)
    looks = list(itertools.product(COLOURS, BACKGROUNDS))
    generator.shuffle(looks)
    shapes, ways = list(CHINESE_SHAPES), list(DIRECTIONS)
    clips = []
    for number, (colour, background) in enumerate(itertools.islice(itertools.cycle(looks), count)):
        shape, way = shapes[number % len(shapes)], ways[number % len(ways)]
        middle = Scene(
            shape=shape,
            colour=COLOURS[colour],
            background=BACKGROUNDS[background],
            centre=(generator.uniform(0.42, 0.58), generator.uniform(0.42, 0.58)),
            radius=generator.uniform(0.13, 0.2),
        )
        if number % 3 == 2:
            caption = f"{CHINESE_COLOURS[colour]}{CHINESE_SHAPES[shape]}{CHINESE_MOVES[way]}"
        else:
            caption = f"a {colour} {shape} {ENGLISH_MOVES[way]}"
        pictures = [draw_scene(scene, size) for scene in _moving(middle, way, frames)]
        clips.append((f"{number + 1:02d}-{colour}-{shape}-{way}", pictures, caption))
    return clips


def _moving(middle: Scene, way: str, frames: int) -> list[Scene]:
    """The scene in each frame; `middle` is how it looks half-way."""
    across, down = DIRECTIONS[way]
    shares = [TRAVEL * (index / max(frames - 1, 1) - 0.5) for index in range(frames)]
    x, y = middle.centre
    return [replace(middle, centre=(x + across * share, y + down * share)) for share in shares]
