"""Examples of the drawn world as files: pairs with instructions, captioned pictures and clips.

For the demo, the shipped workflows and the tests. Unless asked for unseen ones, no picture is of a look that was held
out of the twins' training; what a LoRA has learnt from examples is judged on those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import torch
from PIL import Image
from torch import Generator

from ..data.video_writer import write_video
from ..errors import ConfigError
from ..files import replacing_folder
from .captions import clip_captions, picture_captions
from .clips import DIRECTIONS, FRAMES, FRAMES_PER_SECOND, clip_looks, moving_scenes
from .edits import EDITS, allows, instruction
from .world import SIDE, Look, choose, draw, looks, pictures, place_scenes

EXAMPLES = 12
"""Enough for a LoRA to learn what is new in them."""


def draw_example_pairs(targets: Path, references: Path, count: int = EXAMPLES, size: int = SIDE, seed: int = 0) -> None:
    """Writes `count` pairs that teach one edit, the blue border, as picture files.

    `targets` gets `<name>.png` and the instruction `<name>.txt`, `references` gets `<name>.png`. Each folder appears
    whole or not at all. A folder that already holds files is left as it is: it may be the user's.

    Args:
        count: number of pairs.
        size: px, side of the square pictures.
        seed: of the scenes.

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
            for name, _, target, text in pairs:
                target.save(folder / f"{name}.png")
                _write_text(folder / f"{name}.txt", text)


def draw_example_pictures(folder: Path, count: int = EXAMPLES, size: int = SIDE, seed: int = 0) -> None:
    """Writes `count` pictures `<name>.png` with captions `<name>.txt` that say what is drawn, two of five in Chinese.

    The folder appears whole or not at all. One that already holds files is left as it is: it may be the user's.

    Args:
        count: number of pictures.
        size: px, side of the square pictures.
        seed: of the scenes.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    if holds_files(folder):
        return
    generator = torch.Generator().manual_seed(seed)
    with replacing_folder(folder) as temporary:
        for number, look in enumerate(_varied(looks(held_out=False), count, generator)):
            captions = picture_captions(look)
            name = _name(number, look)
            (picture,) = pictures(draw(place_scenes([look], generator), size))
            picture.save(temporary / f"{name}.png")
            _write_text(temporary / f"{name}.txt", captions[number % len(captions)])


def draw_example_clips(
    clips: Path,
    start_frames: Path,
    count: int = EXAMPLES,
    size: int = SIDE,
    frames: int = FRAMES,
    seed: int = 0,
    directions: tuple[str, ...] = ("up",),
) -> None:
    """Writes `count` captioned clips as video files, and the first frame of each as a picture.

    `clips` gets `<name>.mp4` and the caption `<name>.txt`, `start_frames` gets `<name>.png`. Each folder appears whole
    or not at all. A folder that already holds files is left as it is: it may be the user's.

    Args:
        count: number of clips.
        size: px, side of the square frames.
        frames: of each clip.
        seed: of the scenes.
        directions: where the shapes go, one after the other; the way up is new to the tiny video twin.

    Raises:
        OSError: the disk is full or a folder cannot be written.
        ConfigError: one of `directions` is unknown.
    """
    if not holds_files(start_frames):
        with replacing_folder(start_frames) as folder:
            # The first frame does not depend on the number of frames.
            for name, shown, _ in draw_moves(count, size, 1, seed, directions):
                shown[0].save(folder / f"{name}.png")
    if not holds_files(clips):
        with replacing_folder(clips) as folder:
            for name, shown, caption in draw_moves(count, size, frames, seed, directions):
                write_video(folder / f"{name}.mp4", shown, FRAMES_PER_SECOND)
                _write_text(folder / f"{name}.txt", caption)


def draw_pairs(
    count: int, size: int = SIDE, seed: int = 0, edit: str = "border", unseen: bool = False
) -> list[tuple[str, Image.Image, Image.Image, str]]:
    """`count` pairs (name, reference, target, instruction) in memory; both pictures are RGB of `size` x `size` px.

    The first pairs of a longer list equal those of a shorter one; another seed gives other scenes.

    Args:
        edit: one of `EDITS`.
        unseen: of looks that neither a twin nor an example has.

    Raises:
        ConfigError: `edit` is none of them.
    """
    if edit not in EDITS:
        raise ConfigError(f"edit is {edit!r}; it must be one of {', '.join(EDITS)}.")
    kind = EDITS[edit]
    generator = torch.Generator().manual_seed(seed)
    allowed = [look for look in looks(held_out=unseen) if allows(look, edit)]
    pairs = []
    for number, look in enumerate(_varied(allowed, count, generator)):
        scenes = place_scenes([look], generator)
        words = choose(kind.words(look), 1, generator)
        (reference,), (target,) = pictures(draw(scenes, size)), pictures(kind.draw(scenes, words, size))
        wording = kind.wordings[number % len(kind.wordings)]
        pairs.append((_name(number, look), reference, target, instruction(wording, look, words[0])))
    return pairs


def draw_moves(
    count: int,
    size: int = SIDE,
    frames: int = FRAMES,
    seed: int = 0,
    directions: tuple[str, ...] = ("up",),
    unseen: bool = False,
) -> Iterator[tuple[str, list[Image.Image], str]]:
    """`count` clips (name, frames, caption), drawn one at a time; the frames are RGB of `size` x `size` px.

    The first clips of more are those of fewer; another seed gives other clips; more frames make a slower one.

    Args:
        directions: as in `draw_example_clips`.
        unseen: of looks that neither a twin nor an example has.

    Raises:
        ConfigError: one of `directions` is unknown.
    """
    unknown = [direction for direction in directions if direction not in DIRECTIONS]
    if unknown or not directions:
        raise ConfigError(f"directions are {directions!r}; there are {', '.join(DIRECTIONS)}.")
    generator = torch.Generator().manual_seed(seed)
    for number, look in enumerate(_varied(clip_looks(held_out=unseen), count, generator)):
        direction = directions[number % len(directions)]
        captions = clip_captions(look, direction)
        shown = [pictures(draw(scenes, size))[0] for scenes in moving_scenes([look], [direction], generator, frames)]
        yield f"{_name(number, look)}-{direction}", shown, captions[number % len(captions)]


def holds_files(folder: Path) -> bool:
    """Whether there is anything in `folder`: what is there is never drawn over."""
    return folder.is_dir() and any(folder.iterdir())


def _varied(options: list[Look], count: int, generator: Generator) -> Iterator[Look]:
    """`count` of `options` in random order, each word about equally often from the first few on."""
    order = torch.randperm(len(options), generator=generator).tolist()
    left, used = [], Counter()
    for _ in range(count):
        left = left or [options[place] for place in order]
        look = min(left, key=lambda each: sum(used[word] for word in astuple(each)))
        left.remove(look)
        used.update(astuple(look))
        yield look


def _name(number: int, look: Look) -> str:
    return f"{number + 1:02d}-{look.colour}-{look.shape}"


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
