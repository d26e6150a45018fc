"""Edits of the drawn world: what an instruction does to pictures, and its wordings in English and Chinese.

The tiny edit twin has learnt `KNOWN`; the blue border is for a LoRA to teach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from .captions import CHINESE, article
from .world import BACKGROUNDS, COLOURS, POSITIONS, SIDE, Look, Scenes, choose, draw, moved, offsets, paint, rgb

BORDER_WIDTH = 1 / 16
"""Share of the side."""

DOT_CENTRE = (0.87, 0.13)
DOT_RADIUS = 0.08

LEFT = 0.2
"""How far "left" moves a shape, as a share of the side."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One kind of edit."""

    wordings: tuple[str, ...]
    """May hold {shape} and {word}, in the wording's own language."""
    draw: Callable[[Scenes, list[str], int], Tensor]
    """(scenes, a word for each, side in px) -> edited pixels [N, 3, S, S]"""
    words: Callable[[Look], list[str]] = lambda look: [""]
    """What {word} can be for a picture; no choice: the edit cannot be asked of it."""


@dataclass(frozen=True, kw_only=True)
class EditedPictures:
    """N edits: pixels [N, 3, S, S] before and after, and the N instructions."""

    references: Tensor
    targets: Tensor
    instructions: list[str]


def _others(names: dict[str, tuple[int, int, int]], own: str) -> list[str]:
    return [name for name in names if name != own]


def _recolour(scenes: Scenes, words: list[str], size: int) -> Tensor:
    return draw(replace(scenes, colours=rgb(*(COLOURS[word] for word in words))), size)


def _new_background(scenes: Scenes, words: list[str], size: int) -> Tensor:
    return draw(replace(scenes, backgrounds=rgb(*(BACKGROUNDS[word] for word in words))), size)


def _invert(scenes: Scenes, words: list[str], size: int) -> Tensor:
    return -draw(scenes, size)


def _move_left(scenes: Scenes, words: list[str], size: int) -> Tensor:
    return draw(moved(scenes, -LEFT, 0.0), size)


def _add_dot(scenes: Scenes, words: list[str], size: int) -> Tensor:
    x, y = offsets(torch.tensor([DOT_CENTRE]), size)
    dot = torch.hypot(x, y)[0] - DOT_RADIUS * size
    return paint(draw(scenes, size), rgb(*(COLOURS[word] for word in words)), dot)


def _add_border(scenes: Scenes, words: list[str], size: int) -> Tensor:
    return add_border(draw(scenes, size))


def add_border(pixels: Tensor) -> Tensor:
    """pixels [N, 3, S, S] -> the same inside a blue border."""
    size = pixels.shape[-1]
    x, y = offsets(torch.tensor([[0.5, 0.5]]), size)
    inside = size * (0.5 - BORDER_WIDTH) - torch.maximum(x.abs(), y.abs())[0]
    return paint(pixels, rgb(COLOURS["blue"]).expand(len(pixels), -1), inside)


EDITS = {
    "recolour": Edit(
        wordings=("make the {shape} {word}", "\u628a{shape}\u53d8\u6210{word}"),
        draw=_recolour,
        words=lambda look: _others(COLOURS, look.colour),
    ),
    "background": Edit(
        wordings=("make the background {word}", "\u628a\u80cc\u666f\u53d8\u6210{word}"),
        draw=_new_background,
        words=lambda look: _others(BACKGROUNDS, look.background),
    ),
    "invert": Edit(wordings=("invert the colours", "\u53cd\u8f6c\u989c\u8272"), draw=_invert),
    "left": Edit(
        wordings=("move the {shape} to the left", "\u628a{shape}\u5411\u5de6\u79fb\u52a8"),
        draw=_move_left,
        # A shape on the left would leave the picture.
        words=lambda look: [""] if POSITIONS[look.position][0] >= 0 else [],
    ),
    "dot": Edit(
        wordings=("add {article} {word} dot", "\u6dfb\u52a0{word}\u5706\u70b9"),
        draw=_add_dot,
        words=lambda look: list(COLOURS),
    ),
    "border": Edit(wordings=("add a blue border", "\u6dfb\u52a0\u84dd\u8272\u8fb9\u6846"), draw=_add_border),
}

KNOWN = ("recolour", "background", "invert", "left", "dot")
"""What the tiny edit twin has learnt."""


def draw_edits(kind: str, chosen: list[Look], scenes: Scenes, generator: Generator, size: int = SIDE) -> EditedPictures:
    """Edits of one kind of the scenes of `chosen`; wording and word are drawn from `generator`.

    Every look must allow the edit (`allows`).
    """
    edit = EDITS[kind]
    words = [choose(edit.words(look), 1, generator)[0] for look in chosen]
    wordings = choose(list(edit.wordings), len(chosen), generator)
    return EditedPictures(
        references=draw(scenes, size),
        targets=edit.draw(scenes, words, size),
        instructions=[instruction(*of_one) for of_one in zip(wordings, chosen, words, strict=True)],
    )


def allows(look: Look, kind: str) -> bool:
    """Whether a picture can be edited so."""
    return bool(EDITS[kind].words(look))


def instruction(wording: str, look: Look, word: str) -> str:
    """The wording with the shape's name and the word in its own language."""
    if wording.isascii():
        return wording.format(shape=look.shape, word=word, article=article(word or "a"))
    return wording.format(shape=CHINESE[look.shape], word=CHINESE.get(word, ""))


def english_words() -> list[str]:
    """Every word of the wordings, once."""
    plain = (edit.wordings[0].split() for edit in EDITS.values())
    return list(dict.fromkeys(word for words in plain for word in words if not word.startswith("{")))


CHINESE_WORDS = (
    "\u628a",
    "\u53d8\u6210",
    "\u80cc\u666f",
    "\u53cd\u8f6c",
    "\u989c\u8272",
    "\u5411\u5de6\u79fb\u52a8",
    "\u6dfb\u52a0",
    "\u5706\u70b9",
    "\u8fb9\u6846",
)
