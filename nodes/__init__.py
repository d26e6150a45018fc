"""The nodes: a thin skin over training/. Each file ends in a NODES dict; here they become ComfyUI's tables."""

from __future__ import annotations

from . import data, encode, load, lora, sample, train
from .entrance import with_entrance


def _merged() -> dict[str, type]:
    merged: dict[str, type] = {}
    for module in (load, lora, data, train, encode, sample):
        twice = merged.keys() & module.NODES.keys()
        if twice:
            raise ValueError(f"{module.__name__} registers {', '.join(sorted(twice))} a second time.")
        merged.update(module.NODES)
    return merged


NODES: dict[str, type] = with_entrance(_merged())
"""Node id -> class. Ids are forever: saved workflows hold them."""

NODE_CLASS_MAPPINGS = NODES
NODE_DISPLAY_NAME_MAPPINGS = {node_id: node.DISPLAY_NAME for node_id, node in NODES.items()}
