"""The nodes: a thin skin over training/. Each file ends in a NODES dict; here they become ComfyUI's tables."""

from __future__ import annotations

NODES: dict[str, type] = {}

NODE_CLASS_MAPPINGS = NODES
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
