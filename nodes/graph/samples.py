"""The input pictures that the shipped workflows name, drawn where they are missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...training.files import replacing
from .core_nodes import SAMPLE_PICTURE
from .signature import is_link

SAMPLE_SIDE = 512
"""Px"""


def named_pictures(graph: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(node id, value) of every LoadImage in an API graph."""
    for node_id, node in graph.items():
        value = node["inputs"].get("image")
        if node["class_type"] == "LoadImage" and isinstance(value, str) and not is_link(value):
            yield node_id, value


def draw_missing_samples(graph: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws the sample picture into `folder` if the graph names it and it is missing. Others are the user's."""
    names = {name for _, name in named_pictures(graph)}
    path = folder / SAMPLE_PICTURE
    if SAMPLE_PICTURE not in names or path.exists():
        return []
    draw_sample(path)
    return [path]


def draw_sample(path: Path) -> None:
    """The picture that the shipped prompts speak of; the tiny twins know its like."""
    import torch

    from ...training.tiny.world import Look, draw, pictures, place_scenes

    look = Look(shape="circle", colour="purple", background="white", position="middle")
    (picture,) = pictures(draw(place_scenes([look], torch.Generator().manual_seed(0)), SAMPLE_SIDE))
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")
