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
    """A reference picture like those of the example pairs."""
    from ...training.tiny.examples import draw_pairs

    _, reference, _, _ = draw_pairs(1, SAMPLE_SIDE, seed=1)[0]
    with replacing(path) as temporary:
        reference.save(temporary, format="PNG")
